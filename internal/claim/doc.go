// Package claim binds claims to volumes: the first room of a volume's journey.
//
// What flows in: claims, volumes, storage classes and pods, as watch events. What flows out: the two-way pointer
// between a claim and its volume (pvc.spec.volumeName, pv.spec.claimRef), the phases of both, the annotations that
// hand a claim to its provisioner, and the end of a released volume (kept, deleted, recycled). Behaviour, words and
// order of writes follow Kubernetes v1.36.3, pkg/controller/volume/{persistentvolume,pvcprotection,pvprotection,
// vacprotection,ephemeral,expand}; what differs is what sets it in motion: an event, never a timer.
//
// How it is laid out, in reading order:
//
//	controller.go   what a caller sees: Options, New, Run
//	claims.go       the claims as last seen or written; volumes.go the same for volumes, with the index and the holds
//	waiting.go      claims that wait for a volume, found again by the volume that could end their wait
//	decide.go       what a claim or a volume needs next: pure, no clock, no client
//	claimsync.go    the claim worker; volumesync.go the volume worker
//	bind.go         the four writes of a binding; patches.go what each of them says
//	provision.go    hand-over to an external provisioner, or provisioning by a plugin
//	reclaim.go      delete and recycle
//	protect*.go, ephemeral.go, expand.go    the smaller controllers beside it
//
// Several workers run at once. A claim or a volume is never worked on twice at a time (its queue sees to that), and
// a volume is written by one worker at a time: whoever writes it holds it (volumes.go), and a worker that finds it
// held is woken when the holder lets go. A volume that is held is not in the index, so no second claim finds it.
//
// This room never calls a driver: external provisioners act on what it writes, plugins through internal/plugin.
package claim
