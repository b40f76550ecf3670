package holderexec

import (
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Spec is one command's surroundings, resolved from a pod.
type Spec struct {
	Pod, Container string
	Mounts         []Mount
	// Env in the form NAME=value.
	Env        []string
	WorkingDir string
	// User and Group are nil for root.
	User, Group *int64
	Groups      []int64
	// Unset names the container's variables that only a container runtime's node could set.
	Unset []string
	// RunDir, if not empty, is where a running command is noted for KillAll.
	RunDir string
	// DataDir, if not empty, is the node's data directory: nothing that is mounted below is seen by the command.
	DataDir string
}

// Mount is one volume at one place.
type Mount struct {
	Volume string
	// Source is the volume's root on the host: a directory, a file (hostPath) or a device.
	Source string
	// SubPath below Source; empty for the root.
	SubPath string
	// Target is absolute and clean.
	Target            string
	ReadOnly          bool
	RecursiveReadOnly bool
	Device            bool
}

// SpecFor resolves what a command in the pod's container sees. container may be empty: then it is the pod's default
// container, or its first. dataDir is the node's data directory, paths says where the node agent has mounted the pod's volumes
// (volume name to host path). They are not taken from the pod's annotation: whoever may patch a pod would choose what root
// binds.
func SpecFor(pod *v1.Pod, container, dataDir string, paths map[string]string) (*Spec, error) {
	c, err := choose(pod, container)
	if err != nil {
		return nil, err
	}
	s := &Spec{Pod: pod.Name, Container: c.Name, WorkingDir: c.WorkingDir}
	s.RunDir, s.DataDir = runDir(dataDir, pod.UID), dataDir
	env := s.environment(pod, c)
	source := func(volume string) (string, error) {
		path, ok := paths[volume]
		if !ok {
			return "", fmt.Errorf("volume %q of pod %s is not mounted yet; `berth why pod/%s` says what it waits for", volume, pod.Name, pod.Name)
		}
		return path, nil
	}
	written := writtenByNode(pod)
	for _, m := range c.VolumeMounts {
		mount := Mount{Volume: m.Name, SubPath: m.SubPath, ReadOnly: m.ReadOnly || written[m.Name], Target: absolute(m.MountPath)}
		mount.RecursiveReadOnly = m.ReadOnly && m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != v1.RecursiveReadOnlyDisabled
		if m.SubPathExpr != "" {
			if mount.SubPath, err = expandStrict(m.SubPathExpr, env); err != nil {
				return nil, fmt.Errorf("volume %q: subPathExpr %q: %w", m.Name, m.SubPathExpr, err)
			}
		}
		if mount.SubPath != "" && !filepath.IsLocal(mount.SubPath) {
			return nil, fmt.Errorf("volume %q: subPath %q leaves the volume", m.Name, mount.SubPath)
		}
		if mount.Source, err = source(m.Name); err != nil {
			return nil, err
		}
		s.Mounts = append(s.Mounts, mount)
	}
	for _, d := range c.VolumeDevices {
		mount := Mount{Volume: d.Name, Target: absolute(d.DevicePath), Device: true}
		if mount.Source, err = source(d.Name); err != nil {
			return nil, err
		}
		s.Mounts = append(s.Mounts, mount)
	}
	// Outer before inner.
	sort.SliceStable(s.Mounts, func(i, j int) bool { return s.Mounts[i].Target < s.Mounts[j].Target })
	for _, m := range s.Mounts {
		if m.Target == "/" {
			return nil, fmt.Errorf("volume %q: mountPath / would hide the host's programs", m.Volume)
		}
	}
	s.identity(pod, c)
	return s, nil
}

// writtenByNode names the volumes whose files the node writes. A container has them read-only, as with a kubelet, whatever its
// mount says: the node goes on writing there as root, at names that nobody else may turn into links.
func writtenByNode(pod *v1.Pod) map[string]bool {
	names := map[string]bool{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		names[v.Name] = v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
	}
	return names
}

func absolute(path string) string { return filepath.Clean("/" + path) }

// choose finds the container by name among containers and init containers, or the default one.
func choose(pod *v1.Pod, name string) (*v1.Container, error) {
	if name == "" {
		name = pod.Annotations["kubectl.kubernetes.io/default-container"]
	}
	var names []string
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if name == "" || list[i].Name == name {
				return &list[i], nil
			}
			names = append(names, list[i].Name)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("the pod has no container")
	}
	return nil, fmt.Errorf("pod %s has no container %q; it has %s", pod.Name, name, strings.Join(names, ", "))
}

// identity takes user and groups from the security contexts; the container's win.
func (s *Spec) identity(pod *v1.Pod, c *v1.Container) {
	if p := pod.Spec.SecurityContext; p != nil {
		s.User, s.Group = p.RunAsUser, p.RunAsGroup
		if p.FSGroup != nil {
			s.Groups = append(s.Groups, *p.FSGroup)
		}
		s.Groups = append(s.Groups, p.SupplementalGroups...)
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.RunAsUser != nil {
			s.User = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			s.Group = sc.RunAsGroup
		}
	}
}
