package csi

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

// seLinuxEnabled is asked once: it can't change while the host runs.
var seLinuxEnabled = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
})

// seLinuxOptions adds the mount option that labels the whole volume at once, for ReadWriteOncePod volumes of drivers with
// seLinuxMount and pods that state their level; else the container runtime relabels file by file. It returns the context used.
// As upstream, volumes of other access modes wait for the feature SELinuxMount: two pods of different labels can share them.
func (p *Plugin) seLinuxOptions(v *plugin.Volume, options []string) ([]string, string, error) {
	if !p.seLinux() || v.Pod == nil || v.PV == nil || !slices.Equal(v.PV.Spec.AccessModes, []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}) {
		return options, "", nil
	}
	d, err := p.csiDriver(p.Driver(v))
	if err != nil || d == nil || d.Spec.SELinuxMount == nil || !*d.Spec.SELinuxMount {
		return options, "", err
	}
	label, err := seLinuxLabel(v.Pod, v.Name)
	if err != nil || label == "" {
		return options, "", err
	}
	// The quotes let the label contain commas.
	return append(slices.Clone(options), fmt.Sprintf("context=%q", label)), label, nil
}

// seLinuxLabel is the label for the files of the pod's volume; empty without a level, which only the runtime could choose,
// and for a pod that wants its files relabelled one by one. Containers that share the volume must agree (upstream
// GetMountSELinuxLabel).
func seLinuxLabel(pod *v1.Pod, volume string) (string, error) {
	var ofPod *v1.SELinuxOptions
	if c := pod.Spec.SecurityContext; c != nil {
		if c.SELinuxChangePolicy != nil && *c.SELinuxChangePolicy == v1.SELinuxChangePolicyRecursive {
			return "", nil
		}
		ofPod = c.SELinuxOptions
	}
	var labels []string
	visit := func(mounts []v1.VolumeMount, c *v1.SecurityContext) {
		if !slices.ContainsFunc(mounts, func(m v1.VolumeMount) bool { return m.Name == volume }) {
			return
		}
		o := ofPod
		if c != nil && c.SELinuxOptions != nil {
			o = c.SELinuxOptions
		}
		labels = append(labels, fileLabel(o))
	}
	for i := range pod.Spec.InitContainers {
		visit(pod.Spec.InitContainers[i].VolumeMounts, pod.Spec.InitContainers[i].SecurityContext)
	}
	for i := range pod.Spec.Containers {
		visit(pod.Spec.Containers[i].VolumeMounts, pod.Spec.Containers[i].SecurityContext)
	}
	slices.Sort(labels)
	switch labels = slices.Compact(labels); len(labels) {
	case 0:
		return "", nil
	case 1:
		return labels[0], nil
	}
	return "", fmt.Errorf("volume %q is mounted by containers of different SELinux labels: %s; give them the same seLinuxOptions, or the pod seLinuxChangePolicy: Recursive",
		volume, strings.Join(labels, ", "))
}

// fileLabel is the label of files for processes with these options. The two differ in role and type: files are object_r and
// container_file_t.
func fileLabel(o *v1.SELinuxOptions) string {
	if o == nil || o.Level == "" {
		return ""
	}
	user := o.User
	if user == "" {
		user = "system_u"
	}
	return user + ":object_r:container_file_t:" + o.Level
}
