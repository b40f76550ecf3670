package flexvolume

import (
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// below says whether path is a clean path inside dir.
func below(path, dir string) bool {
	return filepath.Clean(path) == path && strings.HasPrefix(path, dir+"/")
}

func TestDriverNames(t *testing.T) {
	for name, want := range map[string]string{
		"k8s/nfs":                            "",
		"foo.example.com/my_driver-2":        "",
		"k8s/n":                              "",
		"nfs":                                "names no vendor",
		"":                                   "names no vendor",
		"k8s/":                               "is not VENDOR/DRIVER",
		"/nfs":                               "is not VENDOR/DRIVER",
		"../nfs":                             "is not VENDOR/DRIVER",
		"k8s/..":                             "is not VENDOR/DRIVER",
		"k8s/../../bin/sh":                   "is not VENDOR/DRIVER",
		"k8s/a/b":                            "is not VENDOR/DRIVER",
		"k8s/a~b":                            "is not VENDOR/DRIVER",
		"k8s/a b":                            "is not VENDOR/DRIVER",
		"k8s/a\n":                            "is not VENDOR/DRIVER",
		"k8s/a\x00":                          "is not VENDOR/DRIVER",
		".k8s/nfs":                           "is not VENDOR/DRIVER",
		"kubernetes.io/csi":                  "built-in plugins",
		"k8s/" + strings.Repeat("x", 64):     "is not VENDOR/DRIVER",
		strings.Repeat("y", 1<<16) + "/evil": "is not VENDOR/DRIVER",
	} {
		err := checkDriver(name)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 400) {
			t.Errorf("%.50q: %v, want %q", name, err, want)
		}
	}
}

func TestDirectoriesOfDrivers(t *testing.T) {
	for dir, want := range map[string]string{"k8s~nfs": "k8s/nfs", "foo.com~a-b": "foo.com/a-b"} {
		if got, err := driverOfDir(dir); err != nil || got != want {
			t.Errorf("%s: %s, %v", dir, got, err)
		}
	}
	for dir, want := range map[string]string{"nfs": "no vendor", "a~b~c": "is not VENDOR/DRIVER", "~nfs": "is not VENDOR/DRIVER", "k8s~": "is not VENDOR/DRIVER", "..~..": "is not VENDOR/DRIVER"} {
		if _, err := driverOfDir(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
}

func pv(driver, name string) *plugin.Volume {
	return &plugin.Volume{Name: "data", PV: &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)},
		Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{FlexVolume: &v1.FlexPersistentVolumeSource{Driver: driver}}}},
		Pod: pod("u1")}
}

func pod(uid string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "app", UID: types.UID(uid)}, Spec: v1.PodSpec{ServiceAccountName: "robot"}}
}

func inPod(driver, name string) *plugin.Volume {
	return &plugin.Volume{Name: name, Pod: pod("u1"), Source: &v1.Volume{Name: name, VolumeSource: v1.VolumeSource{FlexVolume: &v1.FlexVolumeSource{Driver: driver}}}}
}

func TestUniqueNames(t *testing.T) {
	p := New(Options{Dir: t.TempDir(), DataDir: "/data"})
	for want, v := range map[v1.UniqueVolumeName]*plugin.Volume{
		"k8s/nfs/pv1":     pv("k8s/nfs", "pv1"),
		"k8s/nfs/u1^data": inPod("k8s/nfs", "data"),
	} {
		got, err := p.UniqueName(v)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v", want, got, err)
		}
		driver, key, ok := splitUniqueName(got)
		if !ok || driver != "k8s/nfs" || !below(p.GlobalPath(v), "/data/plugins/kubernetes.io/flexvolume/k8s/nfs/mounts") || filepath.Base(p.GlobalPath(v)) != key {
			t.Errorf("%s: %s %s %s", want, driver, key, p.GlobalPath(v))
		}
		if d, k, ok := p.paths.splitGlobal(p.GlobalPath(v)); !ok || d != driver || k != key {
			t.Errorf("%s: global path is of %s %s", want, d, k)
		}
		if m, ok := p.Member(string(got)); !ok || m != "k8s/nfs" {
			t.Errorf("%s: member %s", want, m)
		}
	}
	block := v1.PersistentVolumeBlock
	raw := pv("k8s/nfs", "raw")
	raw.PV.Spec.VolumeMode = &block
	mountOptions := pv("k8s/nfs", "opts")
	mountOptions.PV.Spec.MountOptions = []string{"hard"}
	for want, v := range map[string]*plugin.Volume{
		"is not VENDOR/DRIVER": pv("../evil", "x"), "no vendor": inPod("nfs", "x"), "can't be the name": pv("k8s/nfs", ".."),
		"no raw devices": raw, "mount options are not supported": mountOptions, "pod is not known": {Name: "x", Source: inPod("k8s/nfs", "x").Source},
	} {
		if _, err := p.UniqueName(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// Names of anything never lead out of the directories of the plugin.
func FuzzNames(f *testing.F) {
	f.Add("k8s/nfs", "pv1", "u1")
	f.Add("../..", "..", "../../..")
	f.Add("a/b", "c/../../d", "^")
	f.Fuzz(func(t *testing.T, driver, volume, uid string) {
		p := paths{root: "/data"}
		for _, v := range []*plugin.Volume{pv(driver, volume), inPod(driver, volume)} {
			v.Pod = pod(uid)
			k, err := key(v)
			if err != nil || checkDriver(driver) != nil {
				continue
			}
			if !below(p.global(driver, k), p.driver(driver)) || !below(p.driver(driver), p.plugin()) || !below(p.stagedRecord(driver, k), p.driver(driver)) {
				t.Errorf("%q %q %q lead to %q", driver, volume, uid, p.global(driver, k))
			}
			d, back, ok := splitUniqueName(uniqueName(driver, k))
			if !ok || d != driver || back != k {
				t.Errorf("%q %q: unique name %q is read back as %q %q", driver, k, uniqueName(driver, k), d, back)
			}
			if checkElement(uid) == nil && checkElement(plugin.EscapeName(v.SpecName())) == nil && !below(p.target(types.UID(uid), driver, v.SpecName()), p.volumes(types.UID(uid))) {
				t.Errorf("target %q", p.target(types.UID(uid), driver, v.SpecName()))
			}
		}
	})
}
