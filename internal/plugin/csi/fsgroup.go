package csi

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// appliesFSGroup says whether the node changes the volume's group (upstream supportsFSGroup).
func (p *Plugin) appliesFSGroup(v *plugin.Volume, q *publishCall, fsGroup *int64) bool {
	switch {
	case fsGroup == nil || v.ReadOnly || q.fsPolicy == storagev1.NoneFSGroupPolicy:
		return false
	case q.fsPolicy == storagev1.FileFSGroupPolicy:
		return true
	case q.fsType == "":
		return false // a shared file system, perhaps: other nodes' pods would lose their access
	case v.PV != nil:
		return slices.Contains(v.PV.Spec.AccessModes, v1.ReadWriteOnce) || slices.Contains(v.PV.Spec.AccessModes, v1.ReadWriteOncePod)
	}
	return true
}

func changePolicy(pod *v1.Pod) v1.PodFSGroupChangePolicy {
	if c := pod.Spec.SecurityContext; c != nil && c.FSGroupChangePolicy != nil {
		return *c.FSGroupChangePolicy
	}
	return v1.FSGroupChangeAlways
}

const (
	groupReadWrite = os.FileMode(0o660)
	groupExecute   = os.FileMode(0o110)
)

// applyFSGroup gives everything below dir to the group, readable and writable by it, new files included (setgid). The root comes last,
// so that with OnRootMismatch a walk that was cut short starts again.
func applyFSGroup(ctx context.Context, dir string, group int64, policy v1.PodFSGroupChangePolicy) error {
	if policy == v1.FSGroupChangeOnRootMismatch && rootMatches(dir, group) {
		return nil
	}
	return boundary.Do("csi/apply-fs-group", func() error { return changeGroup(ctx, dir, group) })
}

func changeGroup(ctx context.Context, path string, group int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return nil // removed by another user of the volume while we walk
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		names, err := dirNames(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := changeGroup(ctx, filepath.Join(path, name), group); err != nil {
				return err
			}
		}
	}
	// As upstream, a file that can't be changed (immutable, or on a file system without owners) does not stop the rest.
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int64(stat.Gid) != group {
		_ = os.Lchown(path, -1, int(group))
	}
	if info.Mode()&os.ModeSymlink != 0 {
		return nil // chmod would follow it
	}
	mode := info.Mode() | groupReadWrite
	if info.IsDir() {
		mode |= os.ModeSetgid | groupExecute
	}
	// chown clears setuid and setgid of executables: the mode is set in any case.
	_ = os.Chmod(path, mode)
	return nil
}

func rootMatches(dir string, group int64) bool {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	want := groupReadWrite | groupExecute
	return ok && int64(stat.Gid) == group && info.Mode().Perm()&want == want && info.Mode()&os.ModeSetgid != 0
}

// dirNames reads a directory unsorted: sorting a million names is for nothing here.
func dirNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
