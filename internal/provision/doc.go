// Package provision is phase 1 of the journey: it makes and deletes volumes, and does for every CSI driver what the
// official sidecars do in a cluster: provision, attach, resize, modify and snapshot.
//
// The controllers are the sidecars' own, imported as libraries; what is here is what lets all of them, for all drivers,
// live in one process on one set of informers:
//
//   - scope: each driver's controllers get informers that show them only their own objects, keep no resync, and are
//     taken off the shared informers when the driver goes.
//   - connection: one gRPC connection per driver; each RPC has a deadline, is visible while it runs, and its answer is
//     checked before a library sees it. A lost connection is an error of one call, never the end of the process.
//   - intent: nothing is created at a driver before the claim carries a finalizer that makes the creation's outcome
//     known (external-provisioner #486).
//   - lanes: attach and detach are worked by separate queues, so that a slow detach holds up no attach.
//
// What flows in: claims, volumes, VolumeAttachments, snapshots and classes from the informers; drivers from the node's
// plugin registration (AddDriver, RemoveDriver). What flows out: RPCs to the drivers, PersistentVolumes,
// VolumeAttachment status, CSIStorageCapacity objects, events. The room never touches the kernel or a backend.
package provision
