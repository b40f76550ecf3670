// Package attach is phase 2 of the journey: it brings volumes to the nodes whose pods need them, and takes them away
// again (upstream pkg/controller/volume/attachdetach).
//
// What flows in: pods bound to nodes, their claims and volumes, nodes, VolumeAttachments, CSIDrivers, all as informer
// events. What flows out: calls of plugin.Attacher, node.status.volumesAttached, events on pods. The room knows
// neither CSI nor any driver, never touches the kernel, and keeps no truth of its own: at start it is rebuilt from the
// nodes' status and from what the attachers believe to be attached.
//
// One entry per volume and node holds both what is wanted (the pods) and what is (the attachment). An event changes
// entries and puts their keys on a queue; a worker decides on one entry (decide.go, without clock or I/O) and does
// one step. Nothing polls: an entry waits for the event that will change its answer, or for its own timer where only
// time can change it (force detach).
//
// The order of a detach is upstream's: not in node.status.volumesInUse, leaves node.status.volumesAttached, that is
// persisted, the live node still does not use it, then the attacher is asked. On nodes of our own agent, which reports its
// use without a gap, the volume leaves volumesAttached before it is unmounted. So a node that sees a volume in
// volumesAttached may mount it, and a volume that is mounted is never taken away, unless it is known that the node
// cannot write any more.
package attach
