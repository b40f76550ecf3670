package kill

// notCrossed are boundaries that no life crosses, with the reason. A line here is a gap that a reader must be able to
// accept.
var notCrossed = map[string]string{
	"claim/claim-capacity":        noInTree,
	"claim/create-volume":         noInTree,
	"claim/delete-in-tree":        noInTree,
	"claim/delete-volume":         noInTree,
	"claim/drop-volume-finalizer": noInTree,
	"claim/expand-in-tree":        noInTree,
	"claim/provision-in-tree":     noInTree,
	"claim/recycle":               noInTree,
	"claim/take-selected-node":    noInTree,
	"claim/undo-provision":        noInTree,
	"claim/unmark-resized-volume": noInTree,
	"claim/volume-capacity":       noInTree,

	"pool/give-up-backing":   fullDisk,
	"pool/give-up-growth":    fullDisk,
	"pool/give-up-image":     fullDisk,
	"pool/give-up-mount":     "the pool must be damaged where only its mount shows it",
	"pool/give-up-inflating": "the pool must be full at that moment; internal/block/pool's component tests fill it",
	"pool/give-up-volume":    "the pool must be full at that moment; internal/block/pool's component tests fill it",

	"provision/api-write":             "for kinds that the sidecars do not write today",
	"provision/create-group-snapshot": noSnapshots,
	"provision/create-snapshot":       noSnapshots,
	"provision/delete-group-snapshot": noSnapshots,
	"provision/delete-snapshot":       noSnapshots,
	"provision/modify-volume":         "neither our driver nor the foreign one has MODIFY_VOLUME",
	"provision/update-snapshot":       noSnapshots,
}

const (
	noInTree    = "no in-tree plugin of this build provisions, deletes, recycles or grows; internal/claim fails each write in turn with one that does"
	fullDisk    = "the host's disk must become full between a check and the allocation after it"
	noSnapshots = "neither our driver nor the foreign one has snapshots"
)
