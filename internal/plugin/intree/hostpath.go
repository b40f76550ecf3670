package intree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

const hostPathName = "kubernetes.io/host-path"

// hostPath serves directories, files, sockets and devices of this host as they are: nothing is mounted and nothing is
// taken away.
type hostPath struct {
	*Volumes
	unstaged
}

var _ plugin.Mounter = (*hostPath)(nil)

func (*hostPath) Name() string { return hostPathName }

func (*hostPath) Supports(v *plugin.Volume) bool { return hostPathOf(v) != nil }

func hostPathOf(v *plugin.Volume) *v1.HostPathVolumeSource {
	switch {
	case v.PV != nil:
		return v.PV.Spec.HostPath
	case v.Source != nil:
		return v.Source.HostPath
	}
	return nil
}

func (*hostPath) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return podVolumeName(hostPathName, v.Pod.UID, v.SpecName()), nil
}

func (*hostPath) Publish(_ context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	src := hostPathOf(r.Volume)
	if err := noBackSteps(src.Path); err != nil {
		return plugin.Published{}, fmt.Errorf("hostPath %q: %w", src.Path, err)
	}
	if r.Volume.Mode() == v1.PersistentVolumeBlock {
		return plugin.Published{}, fmt.Errorf("hostPath %q: volumeMode Block is not served by hostPath volumes; use a local volume", src.Path)
	}
	if src.Type != nil && *src.Type != v1.HostPathUnset {
		if err := checkType(src.Path, *src.Type); err != nil {
			return plugin.Published{}, fmt.Errorf("hostPath type check failed: %w", err)
		}
	}
	return plugin.Published{Path: src.Path}, nil
}

// checkType makes what DirectoryOrCreate and FileOrCreate allow to be made, and checks what is there.
func checkType(path string, want v1.HostPathType) error {
	info, err := os.Stat(path)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	switch {
	case missing && want == v1.HostPathDirectoryOrCreate:
		return boundary.Do("intree/make-host-directory", func() error { return os.MkdirAll(path, 0o755) })
	case missing && want == v1.HostPathFileOrCreate:
		return boundary.Do("intree/make-host-file", func() error {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		})
	}
	kinds := map[v1.HostPathType]struct {
		name string
		is   func(os.FileMode) bool
	}{
		v1.HostPathDirectory:         {"directory", os.FileMode.IsDir},
		v1.HostPathDirectoryOrCreate: {"directory", os.FileMode.IsDir},
		v1.HostPathFile:              {"file", os.FileMode.IsRegular},
		v1.HostPathFileOrCreate:      {"file", os.FileMode.IsRegular},
		v1.HostPathSocket:            {"socket file", func(m os.FileMode) bool { return m&os.ModeSocket != 0 }},
		v1.HostPathCharDev:           {"character device", func(m os.FileMode) bool { return m&os.ModeCharDevice != 0 }},
		v1.HostPathBlockDev:          {"block device", isBlock},
	}
	kind, ok := kinds[want]
	switch {
	case !ok:
		return fmt.Errorf("%s is not a type of host path", want)
	case missing:
		return fmt.Errorf("%s is not a %s: it does not exist", path, kind.name)
	case !kind.is(info.Mode()):
		return fmt.Errorf("%s is not a %s", path, kind.name)
	}
	return nil
}

func isBlock(m os.FileMode) bool { return m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0 }

// noBackSteps refuses ".." in a path that an API object names.
func noBackSteps(path string) error {
	if path == "" {
		return errors.New("path must not be empty")
	}
	for _, element := range strings.Split(path, "/") {
		if element == ".." {
			return errors.New("path must not contain '..'")
		}
	}
	return nil
}

func (*hostPath) Unpublish(context.Context, plugin.UnpublishRequest) error { return nil }

// Reconstruct never finds anything: a host path leaves no directory of its own.
func (*hostPath) Reconstruct(uid types.UID, specName string, _ v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	return plugin.Reconstructed{}, fmt.Errorf("reconstruct %s of pod %s: %w", specName, uid, os.ErrNotExist)
}
