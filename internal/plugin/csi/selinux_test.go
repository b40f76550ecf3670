package csi

import (
	"slices"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/plugin"
)

// The whole volume is labelled by a mount option where that is possible, in the stage as in the publish; else nothing is said.
func TestSELinuxMount(t *testing.T) {
	const option = `context="system_u:object_r:container_file_t:s0:c10,c20"`
	level := func(l string) *v1.SELinuxOptions { return &v1.SELinuxOptions{Level: l} }
	ofContainer := func(name, l string) v1.Container {
		c := v1.Container{Name: name, VolumeMounts: []v1.VolumeMount{{Name: "data"}}}
		if l != "" {
			c.SecurityContext = &v1.SecurityContext{SELinuxOptions: level(l)}
		}
		return c
	}
	recursive := v1.SELinuxChangePolicyRecursive
	for name, c := range map[string]struct {
		noSELinux, noMount bool
		change             func(*plugin.Volume)
		want               string
		refused            string
	}{
		"the pod's level":        {want: option},
		"a host without":         {noSELinux: true},
		"a driver without":       {noMount: true},
		"no level":               {change: func(v *plugin.Volume) { v.Pod.Spec.SecurityContext.SELinuxOptions = &v1.SELinuxOptions{Type: "t"} }},
		"no options":             {change: func(v *plugin.Volume) { v.Pod.Spec.SecurityContext = nil }},
		"file by file, as asked": {change: func(v *plugin.Volume) { v.Pod.Spec.SecurityContext.SELinuxChangePolicy = &recursive }},
		"a volume that pods share": {change: func(v *plugin.Volume) {
			v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod, v1.ReadWriteMany}
		}},
		"a user of its own": {change: func(v *plugin.Volume) { v.Pod.Spec.SecurityContext.SELinuxOptions.User = "me_u" },
			want: strings.Replace(option, "system_u", "me_u", 1)},
		"the container's level wins": {change: func(v *plugin.Volume) { v.Pod.Spec.Containers = []v1.Container{ofContainer("c", "s0:c1")} },
			want: `context="system_u:object_r:container_file_t:s0:c1"`},
		"containers that agree": {change: func(v *plugin.Volume) {
			v.Pod.Spec.Containers = []v1.Container{ofContainer("a", ""), ofContainer("b", "s0:c10,c20")}
		}, want: option},
		"containers that do not": {change: func(v *plugin.Volume) {
			v.Pod.Spec.Containers = []v1.Container{ofContainer("a", "s0:c1"), ofContainer("b", "s0:c2")}
		}, refused: "different SELinux labels"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, allCapabilities...)
			mounts := !c.noMount
			p, _ := newPlugin(t, s, DriversOptions{}, csiDriver(func(d *storagev1.CSIDriverSpec) { d.SELinuxMount = &mounts }))
			p.seLinux = func() bool { return !c.noSELinux }
			v := testVolume(func(v *plugin.Volume) {
				v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
				v.Pod.Spec.SecurityContext = &v1.PodSecurityContext{SELinuxOptions: level("s0:c10,c20")}
				v.Pod.Spec.Containers = []v1.Container{ofContainer("c", "")}
			})
			if c.change != nil {
				c.change(v)
			}
			err := p.Stage(t.Context(), plugin.StageRequest{Volume: v})
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
				t.Fatal(err)
			}
			want := []string{"noatime"}
			if c.want != "" {
				want = append(want, c.want)
			}
			stage := s.last["NodeStageVolume"].(*csipb.NodeStageVolumeRequest).VolumeCapability.GetMount().GetMountFlags()
			publish := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest).VolumeCapability.GetMount().GetMountFlags()
			if !slices.Equal(stage, want) || !slices.Equal(publish, want) {
				t.Errorf("staged with %q, published with %q, want %q", stage, publish, want)
			}
			if len(v.PV.Spec.MountOptions) != 1 {
				t.Error("the informer's object was written into")
			}
		})
	}
}
