package intree

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/fsgroup"
	"berth.io/berth/internal/plugin/intree/removal"
)

const emptyDirName = "kubernetes.io/empty-dir"

// emptyDir serves directories that live as long as the pod: on the disk, in memory, or in huge pages.
type emptyDir struct {
	*Volumes
	unstaged
}

var (
	_ plugin.Mounter = (*emptyDir)(nil)
	_ plugin.Keeper  = (*emptyDir)(nil)
)

func (*emptyDir) Name() string { return emptyDirName }

func (*emptyDir) Supports(v *plugin.Volume) bool {
	return v.PV == nil && v.Source != nil && v.Source.EmptyDir != nil
}

func (*emptyDir) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return podVolumeName(emptyDirName, v.Pod.UID, v.SpecName()), nil
}

// Publish makes the directory. A ready mark beside the volume (upstream's place for it) tells a finished volume, whose
// mode and owner are now the pod's affair, from one that a crash left half-made.
func (e *emptyDir) Publish(ctx context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	uid, name := r.Volume.Pod.UID, r.Volume.SpecName()
	dir := e.volumeDir(uid, emptyDirName, name)
	ready := e.readyMark(uid, name)
	m, options, err := e.medium(r.Volume)
	if err != nil {
		return plugin.Published{}, fmt.Errorf("emptyDir %q: %w", name, err)
	}
	mounted, on, err := e.disk.Mounted(dir)
	if err != nil {
		return plugin.Published{}, err
	}
	if exists(ready) && exists(dir) && (m == onDisk || mounted && on == m) {
		return plugin.Published{Path: dir}, nil
	}
	if err := e.makeVolume(dir, m, options, mounted && on == m); err != nil {
		return plugin.Published{}, fmt.Errorf("emptyDir %q: %w", name, err)
	}
	if err := ownVolume(ctx, dir, r.FSGroup, v1.FSGroupChangeAlways, fsgroup.ReadWrite); err != nil {
		return plugin.Published{}, fmt.Errorf("emptyDir %q: %w", name, err)
	}
	err = boundary.Do("intree/mark-ready", func() error {
		if err := os.MkdirAll(filepath.Dir(ready), 0o750); err != nil {
			return err
		}
		return os.WriteFile(ready, nil, 0o640)
	})
	return plugin.Published{Path: dir}, err
}

func (e *emptyDir) readyMark(uid types.UID, name string) string {
	return filepath.Join(e.pluginDir(uid, emptyDirName, name), "ready")
}

// Keeps is true for a finished volume on the disk: in memory or huge pages, what is there goes with the mount.
func (e *emptyDir) Keeps(uid types.UID, name string) bool {
	dir := e.volumeDir(uid, emptyDirName, name)
	mounted, _, err := e.disk.Mounted(dir)
	return err == nil && !mounted && exists(dir) && exists(e.readyMark(uid, name))
}

// makeVolume makes dir with mode 0777 and mounts the medium there.
func (v *Volumes) makeVolume(dir string, m medium, options []string, mounted bool) error {
	err := boundary.Do("intree/make-volume", func() error {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		if mounted {
			return nil
		}
		return os.Chmod(dir, 0o777) // past the umask
	})
	if err != nil || m == onDisk || mounted {
		return err
	}
	return v.disk.Memory(dir, m, options)
}

// medium chooses the medium of v and its mount options.
func (e *emptyDir) medium(v *plugin.Volume) (medium, []string, error) {
	src := v.Source.EmptyDir
	switch {
	case src.Medium == v1.StorageMediumDefault:
		return onDisk, nil, nil
	case src.Medium == v1.StorageMediumMemory:
		return onMemory, tmpfsSize(e.opts.Allocatable(), v.Pod, src.SizeLimit), nil
	case src.Medium == v1.StorageMediumHugePages, strings.HasPrefix(string(src.Medium), string(v1.StorageMediumHugePagesPrefix)):
		size, err := hugePageSize(src.Medium, v.Pod)
		return onHugePages, []string{"pagesize=" + size}, err
	}
	return onDisk, nil, fmt.Errorf("unknown storage medium %q", src.Medium)
}

// tmpfsSize is the smallest of the node's memory, the pod's memory limit and the volume's own limit, as upstream's
// calculateEmptyDirMemorySize.
func tmpfsSize(allocatable v1.ResourceList, pod *v1.Pod, limit *resource.Quantity) []string {
	size := allocatable.Memory().Value()
	lower := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	lower(podMemoryLimit(pod))
	if limit != nil {
		lower(limit.Value())
	}
	if size == 0 {
		return nil
	}
	return []string{fmt.Sprintf("size=%d", size)}
}

// podMemoryLimit is the memory limit of the pod's cgroup in bytes, 0 when a container has none.
func podMemoryLimit(pod *v1.Pod) int64 {
	if pod == nil {
		return 0
	}
	if r := pod.Spec.Resources; r != nil && !r.Limits.Memory().IsZero() {
		return r.Limits.Memory().Value()
	}
	var sum, initMax int64
	for _, c := range pod.Spec.Containers {
		n := c.Resources.Limits.Memory().Value()
		if n == 0 {
			return 0
		}
		sum += n
	}
	for _, c := range pod.Spec.InitContainers {
		n := c.Resources.Limits.Memory().Value()
		if n == 0 {
			return 0
		}
		initMax = max(initMax, n)
	}
	return max(sum, initMax)
}

// hugePageSize finds the page size of a huge page volume: named by the medium, or the only one that the pod requests.
func hugePageSize(m v1.StorageMedium, pod *v1.Pod) (string, error) {
	want := strings.TrimPrefix(string(m), string(v1.StorageMediumHugePagesPrefix))
	if m == v1.StorageMediumHugePages {
		want = ""
	}
	found := ""
	for _, c := range append(append([]v1.Container(nil), pod.Spec.Containers...), pod.Spec.InitContainers...) {
		for name := range c.Resources.Requests {
			size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
			switch {
			case !ok || want != "" && size != want:
			case found != "" && found != size:
				return "", fmt.Errorf("medium %s cannot be used when containers request more than one huge page size", m)
			default:
				found = size
			}
		}
	}
	if found == "" {
		return "", fmt.Errorf("medium %s: no container requests huge pages of that size", m)
	}
	q, err := resource.ParseQuantity(found)
	if err != nil {
		return "", fmt.Errorf("huge page size %q: %w", found, err)
	}
	return q.String(), nil
}

// Unpublish unmounts the medium and removes the directory with everything in it, never through a mount point.
func (e *emptyDir) Unpublish(_ context.Context, r plugin.UnpublishRequest) error {
	// The mark goes first: a crash after it leaves a volume that a new publish makes again, not one that looks ready.
	if err := removal.All(e.pluginDir(r.PodUID, emptyDirName, r.SpecName)); err != nil {
		return err
	}
	return e.unmakeVolume(e.volumeDir(r.PodUID, emptyDirName, r.SpecName))
}

// unmakeVolume undoes makeVolume.
func (v *Volumes) unmakeVolume(dir string) error {
	for {
		mounted, m, err := v.disk.Mounted(dir)
		if err != nil {
			return err
		}
		if !mounted {
			return removal.All(dir)
		}
		if m == onDisk {
			return fmt.Errorf("remove %s: %w (not of this volume; unmount it by hand)", dir, removal.ErrMounted)
		}
		if err := v.disk.Unmount(dir); err != nil {
			return err
		}
	}
}

func (e *emptyDir) Reconstruct(uid types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	return e.reconstruct(uid, emptyDirName, specName, mode)
}

// reconstruct reports a directory volume of one pod.
func (v *Volumes) reconstruct(uid types.UID, pluginName, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	dir := v.volumeDir(uid, pluginName, specName)
	if !exists(dir) {
		return plugin.Reconstructed{}, fmt.Errorf("reconstruct %s of pod %s: %s: %w", specName, uid, dir, os.ErrNotExist)
	}
	return plugin.Reconstructed{Name: podVolumeName(pluginName, uid, specName), SpecName: specName, Mode: mode, Path: dir}, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
