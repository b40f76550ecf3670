// Package node is the node agent: it makes this machine a node of the API, takes in the plugins that register here, and
// carries this node's pods from "scheduled" to Ready and, when they are deleted, until they are gone.
//
// What flows in: the node's pods and its own Node object as informer events, sockets in DIR/plugins_registry, and the
// mount room's word that something has changed. What flows out: the Node, its Lease and its CSINode; pod statuses; the
// table of drivers; directories below DIR/pods that are removed when their pod is gone.
//
// There is no container runtime here. A pod is a holder: it is Running, and Ready when all its volumes are mounted, its
// statuses say that its commands are not run, and the annotation storage.berth.io/paths says where the volumes are.
// `berth exec` (package holderexec) runs a command with them.
//
// It never mounts or unmounts, and never removes a file of a volume: those are the mount room's and the plugins'.
package node
