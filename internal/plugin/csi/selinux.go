package csi

import (
	"os"
	"slices"
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
func (p *Plugin) seLinuxOptions(v *plugin.Volume, options []string) ([]string, string) {
	if !seLinuxEnabled() || v.Pod == nil || v.PV == nil || !slices.Contains(v.PV.Spec.AccessModes, v1.ReadWriteOncePod) {
		return options, ""
	}
	d, err := p.csiDriver(p.Driver(v))
	if err != nil || d == nil || d.Spec.SELinuxMount == nil || !*d.Spec.SELinuxMount {
		return options, ""
	}
	label := seLinuxLabel(v.Pod)
	if label == "" {
		return options, ""
	}
	return append(slices.Clone(options), `context="`+label+`"`), label
}

// seLinuxLabel is the pod's label for files; empty without a level, which only the runtime could choose.
func seLinuxLabel(pod *v1.Pod) string {
	c := pod.Spec.SecurityContext
	if c == nil || c.SELinuxOptions == nil || c.SELinuxOptions.Level == "" {
		return ""
	}
	or := func(s, fallback string) string {
		if s == "" {
			return fallback
		}
		return s
	}
	o := c.SELinuxOptions
	// Processes and files differ in role and type: files are object_r and container_file_t.
	return or(o.User, "system_u") + ":object_r:container_file_t:" + o.Level
}
