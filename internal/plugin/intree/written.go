package intree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/fsgroup"
)

// written serves the volumes whose files the node writes from the API: configMap, secret, downwardAPI, projected.
type written struct {
	*Volumes
	unstaged
	name string
	// memory: the files must not reach a disk (secrets), so each volume is a tmpfs of its own.
	memory  bool
	source  func(*v1.VolumeSource) bool
	collect func(ctx context.Context, r plugin.PublishRequest) (payload, error)
}

var _ plugin.Mounter = (*written)(nil)

func (w *written) Name() string { return w.name }

func (w *written) Supports(v *plugin.Volume) bool {
	return v.PV == nil && v.Source != nil && w.source(&v.Source.VolumeSource)
}

func (w *written) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return podVolumeName(w.name, v.Pod.UID, v.SpecName()), nil
}

func (w *written) Refreshes(*plugin.Volume) bool { return true }

// Publish collects the files first: as long as an object is missing, nothing is made, and a volume that shows an
// earlier version keeps it.
func (w *written) Publish(ctx context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	if w.opts.Client == nil {
		return plugin.Published{}, errors.New("there is no API to read the files from")
	}
	files, err := w.collect(ctx, r)
	if err != nil {
		return plugin.Published{}, err // it names the object; the caller names the volume
	}
	dir := w.volumeDir(r.Volume.Pod.UID, w.name, r.Volume.SpecName())
	if err := w.show(ctx, dir, files, r); err != nil {
		return plugin.Published{}, fmt.Errorf("write the files of the volume: %w", err)
	}
	return plugin.Published{Path: dir}, nil
}

// show makes the directory show files. A first publish that fails leaves nothing behind.
func (w *written) show(ctx context.Context, dir string, files payload, r plugin.PublishRequest) (err error) {
	m, options := onDisk, []string(nil)
	if w.memory {
		m, options = onMemory, tmpfsSize(w.opts.Allocatable(), r.Volume.Pod, nil)
	}
	first := !exists(filepath.Join(dir, dataLink))
	defer func() {
		if err != nil && first {
			err = errors.Join(err, w.unmakeVolume(dir))
		}
	}()
	mounted, on, err := w.disk.Mounted(dir)
	if err != nil {
		return err
	}
	if first || w.memory && !mounted {
		if err := w.makeVolume(dir, m, options, mounted && on == m); err != nil {
			return err
		}
	}
	if first {
		if err := makeNested(dir, nestedMountPoints(r.Volume.Pod, r.Volume.Name)); err != nil {
			return err
		}
	}
	return files.write(dir, func(dir string) error {
		return ownVolume(ctx, dir, r.FSGroup, v1.FSGroupChangeAlways, fsgroup.ReadOnly)
	})
}

func (w *written) Unpublish(_ context.Context, r plugin.UnpublishRequest) error {
	return w.unmakeVolume(w.volumeDir(r.PodUID, w.name, r.SpecName))
}

func (w *written) Reconstruct(uid types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	return w.reconstruct(uid, w.name, specName, mode)
}

// nestedMountPoints lists the directories, relative to the volume, where containers mount other volumes inside it; a
// read-only volume must have them before it is used (upstream's MakeNestedMountpoints).
func nestedMountPoints(pod *v1.Pod, volume string) []string {
	nested := map[string]bool{}
	visit := func(mounts []v1.VolumeMount) {
		for _, outer := range mounts {
			if outer.Name != volume {
				continue
			}
			prefix := strings.TrimSuffix(filepath.Clean(outer.MountPath), "/") + "/"
			for _, inner := range mounts {
				if rel, ok := strings.CutPrefix(filepath.Clean(inner.MountPath), prefix); ok && rel != "" {
					nested[rel] = true
				}
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		visit(pod.Spec.InitContainers[i].VolumeMounts)
	}
	for i := range pod.Spec.Containers {
		visit(pod.Spec.Containers[i].VolumeMounts)
	}
	var dirs []string
	for rel := range nested {
		if validatePath(rel) == nil {
			dirs = append(dirs, rel)
		}
	}
	sort.Strings(dirs)
	return dirs
}

// makeNested makes the directories in the new, still empty volume at dir.
func makeNested(dir string, nested []string) error {
	if len(nested) == 0 {
		return nil
	}
	return boundary.Do("intree/make-nested", func() error {
		for _, rel := range nested {
			if err := os.MkdirAll(filepath.Join(dir, rel), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
}
