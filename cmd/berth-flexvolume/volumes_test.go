package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// ask runs a call-out of a driver in a process of its own.
func ask(t *testing.T, driver string, args ...string) (status, message, name string) {
	t.Helper()
	cmd := as(t, driver, args...)
	out, _ := cmd.CombinedOutput()
	status, message = answered(t, cmd, out)
	var a struct{ VolumeName string }
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	return status, message, a.VolumeName
}

func text(t *testing.T, options map[string]string) string {
	t.Helper()
	b, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The examples that people copy name options that their drivers take.
func TestExamplesAreUnderstood(t *testing.T) {
	files, err := filepath.Glob("../../examples/flexvolume-*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, doc := range strings.Split(string(b), "\n---\n") {
				var pv corev1.PersistentVolume
				var pod corev1.Pod
				if yaml.Unmarshal([]byte(doc), &pv) == nil && pv.Spec.FlexVolume != nil {
					f := pv.Spec.FlexVolume
					found = true
					understood(t, f.Driver, f.FSType, f.Options)
				}
				if yaml.Unmarshal([]byte(doc), &pod) == nil && pod.Kind == "Pod" {
					for _, v := range pod.Spec.Volumes {
						if v.FlexVolume != nil {
							found = true
							understood(t, v.FlexVolume.Driver, v.FlexVolume.FSType, v.FlexVolume.Options)
						}
					}
				}
			}
			if !found {
				t.Error("there is no FlexVolume in it")
			}
		})
	}
}

func understood(t *testing.T, driver, fsType string, options map[string]string) {
	t.Helper()
	all := map[string]string{"kubernetes.io/fsType": fsType, "kubernetes.io/readwrite": "rw", "kubernetes.io/pvOrVolumeName": "v"}
	maps.Copy(all, options)
	_, name, _ := strings.Cut(driver, "/")
	if status, message, volume := ask(t, name, "getvolumename", text(t, all)); status != "Success" || volume == "" {
		t.Errorf("%s %v: %s %s", driver, options, status, message)
	}
}

// One storage has one name, however it is written; what a driver cannot serve it refuses in words, before anything is touched.
func TestVolumes(t *testing.T) {
	for name, c := range map[string]struct {
		driver  string
		options map[string]string
		want    string // the volume's name, or with ! in front words of the refusal
	}{
		"nfs":                         {"nfs", map[string]string{"server": "s", "share": "/x"}, "s%3A%2Fx"},
		"nfs without the slash":       {"nfs", map[string]string{"server": "s", "share": "x/"}, "s%3A%2Fx"},
		"nfs, a directory":            {"nfs", map[string]string{"server": "s", "share": "x", "subPath": "y"}, "s%3A%2Fx%2Fy"},
		"nfs of fsType nfs4":          {"nfs", map[string]string{"server": "s", "share": "x", "kubernetes.io/fsType": "nfs4"}, "s%3A%2Fx"},
		"nfs of fsType ext4":          {"nfs", map[string]string{"server": "s", "share": "x", "kubernetes.io/fsType": "ext4"}, "!not one of nfs, nfs4"},
		"nfs, a misspelt option":      {"nfs", map[string]string{"server": "s", "share": "x", "mountoptions": "ro"}, `!"mountoptions" is not one of`},
		"nfs without a server":        {"nfs", map[string]string{"share": "x"}, "!server"},
		"nfs with a smuggled option":  {"nfs", map[string]string{"server": "s", "share": "x", "mountOptions": "ro,suid"}, `!mount option not allowed: "suid"`},
		"cifs":                        {"cifs", map[string]string{"source": "//s/x"}, "%2F%2Fs%2Fx%2F"},
		"cifs by networkPath":         {"cifs", map[string]string{"networkPath": `\\s\x`}, "%2F%2Fs%2Fx%2F"},
		"cifs by server and share":    {"cifs", map[string]string{"server": "s", "share": "x"}, "%2F%2Fs%2Fx%2F"},
		"cifs, named twice":           {"cifs", map[string]string{"source": "//s/x", "networkPath": "//s/y"}, "!name the share once"},
		"cifs, half of it":            {"cifs", map[string]string{"server": "s"}, "!go together"},
		"cifs, nothing of it":         {"cifs", map[string]string{}, "!name the share once"},
		"cifs with a credentials=":    {"cifs", map[string]string{"source": "//s/x", "mountOptions": "vers=3.0,credentials=/etc/x"}, `!"credentials"`},
		"lvm":                         {"lvm", map[string]string{"volumegroup": "a-b", "volumeID": "c"}, "a--b-c"},
		"lvm, and not another's name": {"lvm", map[string]string{"volumegroup": "a", "volumeID": "b-c"}, "a-b--c"},
		"lvm without a group":         {"lvm", map[string]string{"volumeID": "c"}, "!volume group"},
		"lvm, a size without a unit":  {"lvm", map[string]string{"volumegroup": "a", "volumeID": "c", "size": "1000"}, "!give a number and a unit"},
		"lvm of fsType zfs":           {"lvm", map[string]string{"volumegroup": "a", "volumeID": "c", "kubernetes.io/fsType": "zfs"}, "!not served"},
		"lvm, by a kubelet that has forgotten its options":   {"lvm", map[string]string{"kubernetes.io/pvOrVolumeName": "pv", "kubernetes.io/fsType": "", "kubernetes.io/readwrite": "rw"}, "pv"},
		"block, by a kubelet that has forgotten its options": {"block", map[string]string{"kubernetes.io/pvOrVolumeName": "a/b", "kubernetes.io/fsType": "", "kubernetes.io/readwrite": "rw"}, "a%2Fb"},
		"block, options that lack the volume's":              {"block", map[string]string{"kubernetes.io/pvOrVolumeName": "pv", "volumeId": "v"}, `!"volumeId" is not one of`},
		"lvm, a way out":                                     {"lvm", map[string]string{"volumegroup": "..", "volumeID": "shm"}, "!not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			status, message, volume := ask(t, c.driver, "getvolumename", text(t, c.options))
			if words, refused := strings.CutPrefix(c.want, "!"); refused {
				if status != "Failure" || !strings.Contains(message, words) {
					t.Errorf("%s %q %s; want %q", status, message, volume, words)
				}
				return
			}
			if status != "Success" || volume != c.want {
				t.Errorf("%s %q %s; want %s", status, message, volume, c.want)
			}
		})
	}
}
