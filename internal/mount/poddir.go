package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin/intree/removal"
)

// A pod's directories below the data directory.
func podsDir(dataDir string) string { return filepath.Join(dataDir, "pods") }

func podDir(dataDir string, uid types.UID) string {
	return filepath.Join(podsDir(dataDir), string(uid))
}

func subpathsDir(dataDir string, uid types.UID) string {
	return filepath.Join(podDir(dataDir, uid), "volume-subpaths")
}

// tidyPod removes the directory of a pod that has left, once nothing of it is mounted, and then forgets the pod.
func (m *Manager) tidyPod(e *podEntry) {
	leaving := e.released || e.pod == nil
	if !m.ready || !m.complete || !leaving || len(e.uses) > 0 || e.cleaning {
		return
	}
	e.cleaning = true
	broken := e.broken
	m.running.Add(1)
	go func() {
		defer m.running.Done()
		m.cleanBroken(m.ctx, broken)
		err := removePodDir(podDir(m.opts.DataDir, e.uid))
		m.mu.Lock()
		defer m.mu.Unlock()
		e.cleaning = false
		if e.cleanErr = err; err != nil {
			m.log.Warn("pod directory stays", "pod", e.uid, "err", err)
			e.clean.fail(time.Now())
			time.AfterFunc(time.Until(e.clean.until), func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.tidyPod(e)
			})
		} else if (e.released || e.pod == nil) && len(e.uses) == 0 {
			delete(m.pods, e.uid)
		}
		m.changed(e.uid)
		m.noteSettled()
	}()
}

// names are the directories below volume-subpaths that may be the volume's: its own name and the pod's names for it.
func (u *use) names() []string {
	names := []string{u.specName}
	if u.resolved != nil && u.resolved.Name != u.specName {
		names = append(names, u.resolved.Name)
	}
	return names
}

// removeSubpaths unmounts what containers got of parts of the volume: these mounts would keep it busy.
func removeSubpaths(dataDir string, uid types.UID, names ...string) error {
	for _, name := range names {
		dir := filepath.Join(subpathsDir(dataDir, uid), name)
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := unmountBelow(dir); err != nil {
			return fmt.Errorf("remove subpaths: %w", err)
		}
		// dir/<container>/<index>: what was mounted over, an empty directory or a file. Never deeper: there may be data.
		err := boundary.Do("mount/remove-subpaths", func() error {
			for _, container := range entries(dir) {
				for _, index := range entries(filepath.Join(dir, container)) {
					if err := os.Remove(filepath.Join(dir, container, index)); err != nil {
						return err
					}
				}
				if err := os.Remove(filepath.Join(dir, container)); err != nil {
					return err
				}
			}
			return os.Remove(dir)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove subpaths: %w", err)
		}
	}
	return nil
}

// unmountBelow unmounts everything at and below dir, the deepest first.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		err := boundary.Do("mount/unmount", func() error { return unix.Unmount(p, unix.UMOUNT_NOFOLLOW) })
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // gone already
		case errors.Is(err, unix.EBUSY):
			errs = append(errs, fmt.Errorf("unmount %s: a process still uses it (see fuser -vm %s)", p, p))
		default:
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points at and below dir in the order in which they were mounted; what is mounted over comes twice.
func mountsBelow(dir string) ([]string, error) {
	real, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(real, filepath.Base(dir))))
	if err != nil {
		return nil, fmt.Errorf("read the mounts below %s: %w", dir, err)
	}
	points := make([]string, 0, len(infos))
	for _, i := range infos {
		points = append(points, strings.TrimSuffix(i.Mountpoint, "//deleted"))
	}
	return points, nil
}

// removePodDir removes a pod's directory. Where volumes were, only empty directories go: a file there means that an unmount did
// not happen, or that somebody wrote below a mount point, and neither is ours to delete. The rest goes whole, unless anything
// at or below it is a mount point, also one that appears while we remove: through it a volume's data would go.
func removePodDir(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("%s is not removed: %s is still mounted", dir, strings.Join(points, ", "))
	}
	for _, volumes := range []string{"volumes", "volumeDevices", "volume-subpaths"} {
		if err := removeEmptyDirs(filepath.Join(dir, volumes)); err != nil {
			return err
		}
	}
	if err := boundary.Do("mount/remove-pod-dir", func() error { return removal.All(dir) }); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// removeEmptyDirs removes a tree of empty directories; rmdir itself refuses mount points.
func removeEmptyDirs(dir string) error {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range all {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			return fmt.Errorf("%s is not removed: %s stands where a volume was mounted; move it away", dir, path)
		}
		if err := removeEmptyDirs(path); err != nil {
			return err
		}
	}
	return boundary.Do("mount/remove-empty-dir", func() error { return os.Remove(dir) })
}
