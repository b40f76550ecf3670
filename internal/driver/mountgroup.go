package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"berth.io/berth/internal/boundary"
)

// noGroup: the files stay as they are.
const noGroup = -1

// parseGroup reads volume_mount_group: the decimal number of a group, as Kubernetes passes it.
func parseGroup(s string) (int, error) {
	if s == "" {
		return noGroup, nil
	}
	const reserved = 1<<32 - 1 // (gid_t)-1: "unchanged" to chown(2)
	group, err := strconv.ParseUint(s, 10, 32)
	if err != nil || group == reserved {
		return noGroup, errors.New("no number of a group, 0 to 4294967294")
	}
	return int(group), nil
}

// giveToGroup makes what is mounted at target usable by a group: CSI spec v1.13, VolumeMountGroup. No filesystem here has
// a mount option for that. Its root gets the group, group permissions and the set-group-id bit, which new files inherit; what is
// below is changed once, when the root is of another group. The root comes last, so that a walk that was cut short starts
// again.
//
// The volume's users may change it meanwhile: nothing is followed out of it (os.Root).
func giveToGroup(ctx context.Context, target string, group int) error {
	root, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if belongsTo(info, group) {
		return nil
	}
	err = boundary.Do("driver/give-to-group", func() error { return changeGroup(ctx, root, info, group) })
	if err != nil {
		return fmt.Errorf("give the files at %s to group %d: %w", target, group, err)
	}
	return nil
}

const (
	groupFile      = fs.FileMode(0o060)
	groupDirectory = fs.FileMode(0o070)
)

func belongsTo(info fs.FileInfo, group int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Gid) == group && info.Mode()&groupDirectory == groupDirectory && info.Mode()&fs.ModeSetgid != 0
}

// changeGroup changes what is in a directory, then the directory.
func changeGroup(ctx context.Context, dir *os.Root, info fs.FileInfo, group int) error {
	err := eachEntry(dir, func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := dir.Lstat(name)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return changeFile(dir, name, info, group)
		}
		below, err := dir.OpenRoot(name)
		if err != nil {
			return err
		}
		defer below.Close()
		return changeGroup(ctx, below, info, group)
	})
	if err != nil {
		return err
	}
	if err := dir.Lchown(".", -1, group); err != nil {
		return err
	}
	return dir.Chmod(".", info.Mode()|groupDirectory|fs.ModeSetgid)
}

func changeFile(dir *os.Root, name string, info fs.FileInfo, group int) error {
	if err := dir.Lchown(name, -1, group); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil // has no mode of its own
	}
	// A change of the owner clears set-id bits: the mode is set in any case.
	return dir.Chmod(name, info.Mode()|groupFile)
}

// eachEntry calls f with the names in a directory, a few at a time: there may be millions. One that its user removes
// meanwhile, or that cannot be changed (immutable), does not stop the rest.
func eachEntry(dir *os.Root, f func(name string) error) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := f(name); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
