package driver

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin/fsgroup"
)

// noGroup: the files stay as they are.
const noGroup = -1

// parseGroup reads volume_mount_group: the decimal number of a group, as Kubernetes passes it.
func parseGroup(s string) (int64, error) {
	if s == "" {
		return noGroup, nil
	}
	const reserved = 1<<32 - 1 // (gid_t)-1: "unchanged" to chown(2)
	group, err := strconv.ParseUint(s, 10, 32)
	if err != nil || group == reserved {
		return noGroup, errors.New("no number of a group, 0 to 4294967294")
	}
	return int64(group), nil
}

// giveToGroup makes what is mounted at target usable by a group: CSI spec v1.13, VolumeMountGroup. No filesystem here has
// a mount option for that. Its root gets the group, group permissions and the set-group-id bit, which new files inherit; what is
// below is changed once, when the root is of another group.
func giveToGroup(ctx context.Context, target string, group int64) error {
	if fsgroup.Matches(target, group, fsgroup.ReadWrite) {
		return nil
	}
	err := boundary.Do("driver/give-to-group", func() error { return fsgroup.Apply(ctx, target, group, fsgroup.ReadWrite) })
	if err != nil {
		return fmt.Errorf("give the files at %s to group %d: %w", target, group, err)
	}
	return nil
}
