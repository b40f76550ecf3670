package attach

import "time"

// attachment is what is known of a volume on a node.
type attachment int

const (
	detached  attachment = iota
	uncertain            // a step towards attaching or detaching began; its outcome is not known
	attached
)

// situation is all that the next step of a volume on a node depends on.
type situation struct {
	wanted   bool // a pod on a managed node uses the volume
	actual   attachment
	reported bool // stands, or is about to stand, in node.status.volumesAttached
	persists bool // a change of node.status.volumesAttached for this volume is not persisted yet

	exclusive bool // may be on one node at a time
	elsewhere bool // attached, or perhaps attached, on another node

	inUse        bool // node.status.volumesInUse names it, or did when the Node object was deleted: the machine may well live
	keepsUse     bool // volumesInUse has no gap, also while the node's agent restarts (annKeepsUse)
	nodeGone     bool // the Node object does not exist
	nodeReady    bool
	outOfService bool // the node has the out-of-service taint
	evidence     string
	waited       time.Duration // since the detach was asked for
	forceAfter   time.Duration // 0: never
}

// step is what to do next.
type step int

const (
	rest      step = iota // nothing to do
	report                // attached: put it into node.status.volumesAttached
	doAttach              // ask the attacher
	refuse                // attached elsewhere: wait until it has left
	unreport              // take it out of node.status.volumesAttached
	waitWrite             // wait until that is persisted
	waitUse               // mounted: wait until the node says that it is not
	doDetach              // look at the live node, then ask the attacher
)

// Why a detach was not made to wait for the node (label of attachdetach_controller_forced_detaches).
const (
	forcedByTimeout  = "timeout"
	forcedByTaint    = "out-of-service"
	forcedByEvidence = "evidence"
)

// decide is upstream's reconciler for one volume on one node. forced is the reason for which the node's word is not
// waited for, or "".
//
// One order is not upstream's, where the node's agent promises to report its use without a gap (ours does; a kubelet that
// restarts may drop what it has not found again): a volume that nobody wants leaves volumesAttached while the node still
// unmounts it, not afterwards. What protects the mount is that a node reports its use before it reads volumesAttached, and
// that its use is read here after volumesAttached was written; both hold, and the write does not stand in the way of the detach.
func decide(s situation) (next step, forced string) {
	if s.wanted {
		switch {
		case s.actual == attached && s.reported:
			return rest, ""
		case s.actual == attached:
			return report, ""
		case s.exclusive && s.elsewhere:
			return refuse, ""
		}
		return doAttach, ""
	}
	if s.actual == detached {
		return rest, ""
	}
	switch {
	case s.outOfService:
		forced = forcedByTaint
	case s.evidence != "":
		forced = forcedByEvidence
	case !s.nodeReady && s.forceAfter > 0 && s.waited >= s.forceAfter:
		forced = forcedByTimeout
	}
	switch {
	case s.inUse && !s.keepsUse && !s.nodeGone && forced == "":
		return waitUse, ""
	case s.reported && !s.nodeGone:
		return unreport, forced
	case s.persists && !s.nodeGone:
		return waitWrite, forced
	case s.inUse && forced == "":
		return waitUse, ""
	}
	return doDetach, forced
}
