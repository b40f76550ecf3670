// Package agent makes a node's pool what the objects of the node's volumes and snapshots say (BlockVolume, BlockSnapshot;
// api/v1alpha1), and says in their status what became of it. It is the other end of internal/backend/cluster.
//
// In the volume's journey it stands where the controller half of the driver stands on a single machine: what flows in are the objects
// of this node, by a label; what flows out are calls of the node's backend.Controller, a status, and the BlockPool of the node.
// It never stages or mounts: the kubelet asks the node's CSI services for that.
//
//   - One object is worked by one goroutine at a time; several are worked at once. A group of snapshots is worked as one.
//   - Every call of the backend is idempotent, so that a death anywhere is repaired by the next start, which looks at every object.
//   - A volume's object costs one write of status when it is made, and none while nothing changes.
//   - What was refused for good is not tried again until the spec changes: the controller withdraws it. What failed otherwise is
//     tried again, ever later.
//   - Data are deleted for one reason: their own object is being deleted, and carries our finalizer. Data without an object, an
//     object that vanished, a label that was taken away: all that is counted and named in the BlockPool, and left alone. A volume
//     that was there and is not is never made anew, empty.
//   - While the API server is away nothing is lost, and what is mounted stays mounted: the status is written when it is back.
//
// # API
//
//	a, err := agent.New(agent.Options{Node: node, Backend: blockBackend, Objects: client, Owner: ownerOfNode, …})
//	go a.Run(ctx)
//	a.Ready()         // for /readyz: nil once the API server was read, and the BlockPool written
//
// # What it may do in the API
//
//	storage.berth.io  blockvolumes            list watch patch
//	storage.berth.io  blockvolumes/status     patch
//	storage.berth.io  blocksnapshots          list watch patch
//	storage.berth.io  blocksnapshots/status   patch
//	storage.berth.io  blockpools              list watch create
//	storage.berth.io  blockpools/status       patch
//
// patch of the objects themselves is for the finalizer alone.
package agent
