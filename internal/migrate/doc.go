// Package migrate turns a PersistentVolume of a FlexVolume driver into one of the CSI driver that serves the same storage, and back:
// the same data, claim, name and size.
//
// A PersistentVolume's source cannot be changed, so the object is removed and made anew while its claim stays bound to it by name and
// UID. In between the claim is Lost; it becomes Bound again with a volume of the same name whose claimRef has its UID (in
// internal/claim as in upstream's pkg/controller/volume/persistentvolume/pv_controller.go, syncBoundClaim). The order of the steps
// keeps the data whoever dies, and wherever:
//
//	undo file written and synced → reclaim policy Retain → object deleted, its known finalizers taken off → object made anew,
//	Retain → claim Bound → reclaim policy as it was → events → undo file says that it is done
//
// What is in the API says how far a run came; the undo file has both forms of the object, since between two steps the API has none.
// So a second run completes the first, and an undo is the same steps with the two forms exchanged.
//
// The room uses the public API alone and stands beside the volume's journey, not in it: it refuses a volume that any pod, node or
// attachment uses.
package migrate
