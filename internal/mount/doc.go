// Package mount is phase 3 of a volume's journey: the node's volume manager.
//
// What flows in: the pods of this node (SetPod, ReleasePod), claims, volumes, this node's object, attachments and
// drivers as informer events. What flows out: staged and published volumes, made by the plugins; node.status.volumesInUse;
// the claim's size after an expansion on the node; the status of each pod's volumes.
//
// There is no reconcile loop. Each volume is a state machine of its own, keyed by its unique name: next (machine.go) decides from
// what is desired and what is there which one step comes next, a goroutine of that volume takes the step, and an event or the
// end of a step asks again. Nothing runs when nothing changes.
//
// It knows the interfaces of package plugin and never a driver. It must never remove anything through a mount point.
package mount
