// Package cluster composes the rooms for a Kubernetes cluster: what `berth controller` and `berth node --kubernetes` run.
//
// There the cluster's own controllers, scheduler and kubelets bind, place, attach and mount; here are the drivers and the work of all
// their sidecars. Both programs decide nothing about volumes: they make clients, informers and rooms, start and stop
// them in order, and tell the cluster how they are (healthz, readyz, metrics).
//
// The controller (controller.go) works while it holds a Lease. Every client of it but the lease's own goes through a fence
// (fence.go) that lets no write pass when the lease may be another process's.
//
// The node (node.go) opens the pool, serves the driver at the kubelet's plugin directory and registers it. Whatever it mounts
// outlives it: the next process finds the pool and the volumes as they are, so that an update disturbs no I/O.
package cluster
