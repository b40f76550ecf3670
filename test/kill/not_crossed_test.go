package kill

// notCrossed are boundaries that no life crosses, with the reason. A line here is a gap that a reader must be able to
// accept.
var notCrossed = map[string]string{
	"backend-block/mount-with-new-uuid": "a kernel before 6.7, which refuses a second btrfs of one UUID",
	"backend-block/thaw-late":           "a freeze must hang in the kernel for longer than its caller waits",
	"backend-block/thaw-overdue":        "a copy must hang in the kernel for longer than a filesystem may be frozen",

	"claim/create-volume":         noInTree,
	"claim/delete-in-tree":        noInTree,
	"claim/delete-volume":         noInTree,
	"claim/drop-volume-finalizer": noInTree,
	"claim/provision-in-tree":     noInTree,
	"claim/recycle":               noInTree,
	"claim/take-selected-node":    noInTree,
	"claim/undo-provision":        noInTree,

	"discovery/create-job":          byJobs,
	"discovery/delete-job":          byJobs,
	"discovery/delete-stale-claim":  byNodes,
	"discovery/delete-stale-volume": byNodes,
	"discovery/note-node-gone":      byNodes,
	"discovery/report-node-gone":    byNodes,

	"cluster/make-socket-directory":   ofACluster,
	"cluster/name-flexvolume-socket":  ofACluster,
	"cluster/remove-socket-directory": ofACluster,
	"cluster/remove-taint":            ofACluster,
	"cluster/renew-lease":             ofACluster,
	"cluster/take-lease":              ofACluster,

	"flexsocket/forget": "internal/node/flexsocket's component test kills at each crossing",
	"flexsocket/note":   "internal/node/flexsocket's component test kills at each crossing",

	"migrate/create-volume":      byCommand,
	"migrate/delete-volume":      byCommand,
	"migrate/drop-finalizers":    byCommand,
	"migrate/mark-claim":         byCommand,
	"migrate/set-reclaim-policy": byCommand,
	"migrate/tell-claim":         byCommand,
	"migrate/tell-volume":        byCommand,
	"migrate/write-undo-file":    byCommand,

	"pool/give-up-backing":   fullDisk,
	"pool/give-up-growth":    fullDisk,
	"pool/give-up-image":     fullDisk,
	"pool/give-up-mount":     "the pool must be damaged where only its mount shows it",
	"pool/give-up-inflating": "the pool must be full at that moment; internal/block/pool's component tests fill it",
	"pool/give-up-volume":    "the pool must be full at that moment; internal/block/pool's component tests fill it",

	"provision/api-write": "for kinds that the sidecars do not write today",
}

const (
	ofACluster = "a cluster's; internal/cluster's component tests kill `berth controller` and `berth node` there"
	byCommand  = "`berth migrate` writes, not `berth up`; test/e2e kills it before and after each of its writes, both ways"
	byJobs     = "`berth up` runs no Jobs; internal/discovery's component tests fail each write of one in turn, and start anew"
	byNodes    = "`berth up` has one node; internal/discovery/vanished fails each write in turn, and starts anew"
	noInTree   = "no in-tree plugin of this build provisions, deletes or recycles; internal/claim fails each write in turn with one that does"
	fullDisk   = "the host's disk must become full between a check and the allocation after it"
)
