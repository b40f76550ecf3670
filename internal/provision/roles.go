package provision

import (
	"fmt"
	"slices"
)

// Role is one sidecar's job.
type Role string

// The roles, as `berth controller --controllers` names them.
const (
	// Provision creates and deletes volumes, and protects what they are made from (external-provisioner).
	Provision Role = "provision"
	// Capacity keeps CSIStorageCapacity objects (external-provisioner --enable-capacity).
	Capacity Role = "capacity"
	// Attach attaches and detaches (external-attacher).
	Attach Role = "attach"
	// Resize grows volumes (external-resizer).
	Resize Role = "resize"
	// Modify gives volumes the attributes of their VolumeAttributesClass (external-resizer).
	Modify Role = "modify"
	// Snapshot takes and deletes snapshots at a driver, of groups too (external-snapshotter's csi-snapshotter).
	Snapshot Role = "snapshot"
	// SnapshotController binds VolumeSnapshots to contents, once in a cluster for all drivers (external-snapshotter's snapshot-controller).
	SnapshotController Role = "snapshot-controller"
)

// Roles are all of them.
var Roles = []Role{Provision, Capacity, Attach, Resize, Modify, Snapshot, SnapshotController}

// has says whether the manager has a role.
func (m *Manager) has(role Role) bool { return !slices.Contains(m.opts.Without, role) }

// checkRoles refuses what is no role.
func checkRoles(without []Role) error {
	for _, r := range without {
		if !slices.Contains(Roles, r) {
			return fmt.Errorf("provision: no role is called %q", r)
		}
	}
	return nil
}
