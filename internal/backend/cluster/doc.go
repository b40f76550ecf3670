// Package cluster serves volumes that are on the nodes of a cluster, from the process of its controller: each call writes what is
// wanted into an object (BlockVolume, BlockSnapshot; api/v1alpha1), and waits by watch until the agent of the object's node
// (internal/block/agent) says in the status what became of it.
//
// In the volume's journey this is the controller's half of the driver; the node's half is internal/backend/block on each node, where
// internal/driver serves it. Nothing here touches a disk.
//
//   - Intent before act: the object is there before the node does anything, and its finalizer (storage.berth.io/node) keeps it until
//     the node has nothing of it any more. A process that dies anywhere leaves an object; the same call again finds it and goes on.
//   - An error of the node comes back as the typed error that it was (objects.RemoteError). What was refused for good is withdrawn: a
//     volume that could not be made loses its object, a size or parameter that cannot be had is taken back. So the same call again is
//     a new try, on another node perhaps.
//   - Waiting has its caller's deadline, ends a moment before it, and then says what it waited for (objects.AwayError). A caller
//     does not wait for a node that is known to be away.
//   - A node that is gone for good, its Node object deleted or one of the objects annotated with storage.berth.io/node-lost: NODE,
//     holds up neither Delete nor Detach (lost.go).
//
// What nobody claims any more: internal/provision keeps a claim until it is known what became of CreateVolume, so that a volume's
// object always has a claim, a PersistentVolume, or somebody who kept it on purpose (policy Retain). Nothing is swept.
//
// # API
//
//	b, err := cluster.New(cluster.Options{Objects: client, Kube: kube, Nodes: informers.Core().V1().Nodes(), …})
//	go b.Run(ctx)     // its own informers; the Nodes informer is its owner's to start
//	b.Synced()        // for readiness
//	driver.New(driver.Options{Name: driver.BlockName, Controller: b, SocketPath: …})
//	b.OnCapacityChange(func() { manager.CapacityChanged(driver.BlockName) })
//
// # What it may do in the API
//
//	storage.berth.io  blockvolumes    get list watch create patch delete
//	storage.berth.io  blocksnapshots  get list watch create patch delete
//	storage.berth.io  blockpools      list watch
//	""                nodes           get list watch
//
// patch of blocksnapshots is for the finalizer of snapshots on a lost node.
package cluster
