// Package volume is volumes by name, for those who are no pods: the container engines' plugin (internal/docker) and
// `berth volume`. It stands beside the journey and walks none of it: a volume is a claim, a mount is a holder pod, and
// everything between the two is the ordinary flow. So kubectl sees both, snapshots and expansion work on them, and
// `berth why` explains them.
//
//	name   → claim       (ClaimName; the name itself is in an annotation)
//	mount  → holder pod  (named as the claim; one annotation for each caller)
//	at a path of the host → a bind mount, with a record in the data directory
//
// The callers are on the pod itself, so that making the pod and counting the first caller is one write, and so is
// deleting it with the last one: no crash can separate the count from the mount. A caller counts once, however often it
// calls. Where a bind mount is wanted is known only to the data directory, which belongs to root: who may write pods
// must not choose what root mounts over.
package volume
