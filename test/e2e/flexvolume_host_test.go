package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/test/flexdriver"
	"berth.io/berth/test/instance"
)

// flexVolumeDir is where an instance of the tests looks for FlexVolume drivers.
func flexVolumeDir(dataDir string) string { return filepath.Join(dataDir, "flexvolume-drivers") }

func init() {
	examples["flexvolume-nfs.yaml"] = example{pods: []string{"example-flexvolume-nfs"}, claims: []string{"example-flexvolume-nfs"}, prepare: func(s *story, text string) string {
		f := flexOn(s)
		state := f.install("k8s/nfs", "share")
		f.must(os.MkdirAll(filepath.Join(state, "exports/192.0.2.10/export/data"), 0o755))
		return text
	}, delete: "pv/example-flexvolume-nfs"}
	examples["flexvolume-cifs.yaml"] = example{pods: []string{"example-flexvolume-cifs"}, prepare: func(s *story, text string) string {
		f := flexOn(s)
		f.must(os.WriteFile(filepath.Join(f.install("foo/cifs", "cifs"), "password"), []byte("a-password"), 0o600))
		return text
	}}
}

// flex is a story with FlexVolume drivers.
type flex struct {
	*story
	dir    string
	states string
}

func flexOn(s *story) *flex {
	s.Helper()
	states, err := os.MkdirTemp("", "berth-flex-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { os.RemoveAll(states) })
	return &flex{s, flexVolumeDir(s.in.Dir), states}
}

func (f *flex) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// install installs a fixture under a name and waits until status shows it; it returns the directory of its state.
func (f *flex) install(name, kind string) string {
	f.Helper()
	state := filepath.Join(f.states, strings.ReplaceAll(name, "/", "~"))
	f.must(flexdriver.Install(f.dir, name, kind, state))
	f.loaded(name)
	return state
}

func (f *flex) loaded(name string) {
	f.Helper()
	f.until("driver "+name+" loaded", func() (bool, string) {
		out := f.berth("status")
		return strings.Contains(out, name) && slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool {
			return strings.Contains(l, " "+name+" ") && strings.Contains(l, "ready") && strings.Contains(l, "FlexVolume")
		}), out
	})
}

// pv is a PersistentVolume of a driver with its claim, both called name, and a pod of that name.
func (f *flex) pv(driver, name, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[4]s-%[2]s}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: %[4]s
  claimRef: {namespace: %[4]s, name: %[2]s}
  flexVolume: {driver: %[1]s, %[3]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[2]s}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[4]s, resources: {requests: {storage: 64Mi}}}
---`, driver, name, more, f.ns) + podYAML(name, name)
}

// flexPod has a volume called data of the driver.
func flexPod(name, driver, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, flexVolume: {driver: %s%s}}]
---`, name, driver, more)
}

// dataDir is where the pod's volume is on the host.
func (f *flex) dataDir(name string) string {
	f.Helper()
	return paths(f.story, f.ready(name))["data"]
}

func (f *flex) removePod(name string) {
	f.Helper()
	f.kubectl("delete", "pod", name, "--wait=false")
	f.within(90*time.Second, "pod "+name+" gone", func() (bool, string) {
		_, err := f.client.CoreV1().Pods(f.ns).Get(f.ctx, name, metav1.GetOptions{})
		return err != nil, ""
	})
}

// verbs waits until the driver has been called so, leaving out init and what only asks.
func (f *flex) verbs(state string, want ...string) {
	f.Helper()
	f.until(fmt.Sprintf("call-outs %v", want), func() (bool, string) {
		var have []string
		for _, v := range flexdriver.Verbs(state) {
			if v != "init" && v != "getvolumename" && v != "isattached" {
				have = append(have, v)
			}
		}
		return slices.Equal(have, want), fmt.Sprint(have)
	})
}

// nothingOf fails when a mount or a record of the pods and the drivers is left.
func (f *flex) nothingOf(vendor string) {
	f.Helper()
	f.until("nothing left of "+vendor, func() (bool, string) {
		w, err := f.in.World()
		if err != nil {
			return false, err.Error()
		}
		var left []string
		for _, m := range w.Mounts {
			if strings.Contains(m, vendor) {
				left = append(left, m)
			}
		}
		for _, dir := range []string{filepath.Join(f.in.Dir, "plugins/kubernetes.io/flexvolume", vendor), filepath.Join(f.in.Dir, "pods")} {
			_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && (!d.IsDir() && strings.Contains(path, vendor) || filepath.Base(filepath.Dir(path)) == "mounts") {
					left = append(left, path)
				}
				return nil
			})
		}
		return len(left) == 0, strings.Join(left, ", ")
	})
}

// The tutorials' driver that only mounts: a PersistentVolume for many pods at once.
func TestFlexVolumeOfManyPods(t *testing.T) {
	f := flexOn(tell(t))
	state := f.install("many/nfs", "share")
	f.must(os.MkdirAll(filepath.Join(state, "exports/10.0.0.1/data"), 0o755))
	f.apply(strings.ReplaceAll(f.pv("many/nfs", "shared", `fsType: nfs, options: {server: 10.0.0.1, share: /data}`), "ReadWriteOnce", "ReadWriteMany") + podYAML("second", "shared"))
	defer f.kubectl("delete", "pv", f.ns+"-shared", "--wait=false")
	first, second := f.dataDir("shared"), f.dataDir("second")
	if want := "/volumes/many~nfs/" + f.ns + "-shared"; !strings.HasSuffix(first, want) || mountAt(f.story, second).FSType == "" {
		t.Errorf("mounted at %s, want …%s", first, want)
	}
	f.must(os.WriteFile(filepath.Join(first, "hello"), []byte("x"), 0o644))
	if _, err := os.Stat(filepath.Join(second, "hello")); err != nil {
		t.Error(err)
	}
	if out := f.berth("status"); !strings.Contains(out, "FlexVolume, 1 volume, attach no, fsGroup no, metrics") {
		t.Errorf("status:\n%s", out)
	}
	f.event("shared", "SuccessfulMountVolume", "MountVolume.SetUp succeeded for volume")
	f.removePod("shared")
	if _, err := os.Stat(filepath.Join(second, "hello")); err != nil {
		t.Errorf("the other pod lost its volume: %v", err)
	}
	f.removePod("second")
	f.verbs(state, "mount", "mount", "unmount", "unmount")
	if _, err := os.Stat(filepath.Join(state, "exports/10.0.0.1/data/hello")); err != nil {
		t.Errorf("the data is gone: %v", err)
	}
	f.nothingOf("many")
}

// A pod's own volume with a secret: of the wrong type it is refused; a driver that prints its password everywhere gives nothing away.
func TestFlexVolumeSecrets(t *testing.T) {
	f := flexOn(tell(t))
	state := f.install("leaky/cifs", "cifs")
	const password, encoded = "Pa55-wort-geheim", "UGE1NS13b3J0LWdlaGVpbQ=="
	f.must(os.WriteFile(filepath.Join(state, "password"), []byte("another"), 0o600))
	secret := func(name, kind string) string {
		return fmt.Sprintf("\napiVersion: v1\nkind: Secret\nmetadata: {name: %s}\ntype: %s\nstringData: {username: anna, password: %s}\n---", name, kind, password)
	}
	f.apply(secret("own", "leaky/cifs") + secret("opaque", "Opaque") +
		flexPod("wrong", "leaky/cifs", `, secretRef: {name: opaque}`) + flexPod("app", "leaky/cifs", `, fsType: cifs, secretRef: {name: own}, options: {networkPath: //server/share}`))
	f.event("wrong", "FailedMount", `is of type "Opaque", and FlexVolume driver leaky/cifs may only have secrets of its own type`)
	f.event("app", "FailedMount", "mount of FlexVolume driver leaky/cifs failed: user <secret> with password <secret> was refused")
	f.event("app", "FailedMount", "its last line of stderr")
	why := f.berth("why", "-n", f.ns, "pod/app")
	f.must(os.WriteFile(filepath.Join(state, "password"), []byte(password), 0o600))
	dir := f.dataDir("app")
	if b, err := os.ReadFile(filepath.Join(dir, "user")); err != nil || string(b) != "anna\n" {
		t.Errorf("%q, %v", b, err)
	}
	for what, text := range map[string]string{"berth why": why, "events": f.kubectl("get", "events", "-o", "yaml"), "status": f.berth("status", "-o", "json"), "pods": f.kubectl("get", "pods", "-o", "yaml")} {
		if strings.Contains(text, password) || strings.Contains(text, encoded) {
			t.Errorf("%s has the password:\n%s", what, text)
		}
	}
	f.removePod("app")
	f.kubectl("delete", "pod", "wrong")
	for _, dir := range []string{"log", "journal", "plugins", "pods"} {
		out, err := exec.Command("grep", "-r", "-l", "-a", "-e", password, "-e", encoded, filepath.Join(f.in.Dir, dir)).CombinedOutput()
		if err == nil || len(out) > 0 {
			t.Errorf("the password is in %s", out)
		}
	}
	f.nothingOf("leaky")
}

// attach, waitforattach, mountdevice, mount and back, each told.
func TestFlexVolumeThatIsAttached(t *testing.T) {
	f := flexOn(tell(t))
	state := f.install("two/att", "attachable")
	f.must(os.WriteFile(filepath.Join(state, "seconds"), []byte("2"), 0o644)) // upstream's takes two minutes
	f.apply(f.pv("two/att", "data", ""))
	defer f.kubectl("delete", "pv", f.ns+"-data", "--wait=false")
	f.until("berth why to tell the call-out", func() (bool, string) {
		out := f.berth("why", "-n", f.ns, "pvc/data")
		return strings.Contains(out, "mountdevice") && strings.Contains(out, "two/att") && strings.Contains(out, "since"), out
	})
	dir := f.dataDir("data")
	if b, err := os.ReadFile(filepath.Join(dir, "index.html")); err != nil || string(b) != "Hello from flexvolume!\n" {
		t.Errorf("%q, %v", b, err)
	}
	f.event("data", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume")
	if out := f.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status}"); !strings.Contains(out, `{"devicePath":"foo","name":"two/att/`+f.ns+`-data"}`) {
		t.Errorf("volumesAttached: %s", out)
	}
	if _, err := os.Stat(filepath.Join(f.in.Dir, "plugins/kubernetes.io/flexvolume/two/att/mounts", f.ns+"-data", "index.html")); err != nil {
		t.Error(err)
	}
	f.removePod("data")
	f.verbs(state, "attach", "waitforattach", "mountdevice", "mount", "unmount", "unmountdevice", "detach")
	f.until("detach, which the driver notes when it begins, to be over", func() (bool, string) {
		left, err := os.ReadDir(filepath.Join(state, "attached"))
		return err == nil && len(left) == 0, fmt.Sprintf("still attached: %v, %v", left, err)
	})
	f.nothingOf("two")
}

// A driver with a real device and nothing else: the host formats, mounts, binds, and grows the filesystem (XFS: to grow a mounted ext4
// takes CAP_SYS_RESOURCE, which containers often lack).
func TestFlexVolumeOnADevice(t *testing.T) {
	f := flexOn(tell(t))
	state := f.install("real/disk", "disk")
	f.Cleanup(func() { detachAll(f, state) })
	f.apply(fmt.Sprintf("\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: kubernetes.io/no-provisioner\nallowVolumeExpansion: true\n---", f.ns) +
		strings.ReplaceAll(f.pv("real/disk", "data", "fsType: xfs"), "64Mi", "320Mi"))
	defer f.kubectl("delete", "sc/"+f.ns, "pv/"+f.ns+"-data", "--wait=false")
	dir := f.dataDir("data")
	if m := mountAt(f.story, dir); m.FSType != "xfs" || !strings.HasPrefix(m.Source, "/dev/loop") {
		t.Errorf("mounted %+v", m)
	}
	f.must(os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644))
	before := sizeOf(t, dir)
	f.kubectl("patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"384Mi"}}}}`)
	f.until("the claim to have grown", func() (bool, string) {
		have := f.claim("data").Status.Capacity.Storage().String()
		return have == "384Mi", have
	})
	if after := sizeOf(t, dir); after < before+48<<20 {
		t.Errorf("the filesystem has %d bytes, before %d", after, before)
	}
	if calls := strings.Join(flexdriver.Calls(state), "\n"); !strings.Contains(calls, "expandvolume ") || !strings.Contains(calls, " 402653184 335544320") || !strings.Contains(calls, "expandfs ") {
		t.Errorf("call-outs:\n%s", calls)
	}
	f.removePod("data")
	f.apply(podYAML("again", "data"))
	if b, err := os.ReadFile(filepath.Join(f.dataDir("again"), "file")); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	f.removePod("again")
	f.until("the device detached", func() (bool, string) {
		out, _ := exec.Command("losetup", "-j", filepath.Join(state, "disks", f.ns+"-data")).Output()
		return len(out) == 0, string(out)
	})
	f.nothingOf("real")
}

func detachAll(f *flex, state string) {
	files, _ := filepath.Glob(filepath.Join(state, "disks", "*"))
	for _, file := range files {
		out, _ := exec.Command("losetup", "--noheadings", "--output", "NAME", "-j", file).Output()
		for _, dev := range strings.Fields(string(out)) {
			f.Errorf("%s is still attached to %s", file, dev)
			_ = exec.Command("losetup", "--detach", dev).Run()
		}
	}
}

func sizeOf(t *testing.T, dir string) int64 {
	t.Helper()
	out, err := exec.Command("df", "--output=size", "--block-size=1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	fmt.Sscan(strings.Fields(string(out))[1], &n)
	return n
}

// Drivers that rot hold up their own volumes only, and the events say what is wrong with which.
func TestBrokenFlexVolumeDrivers(t *testing.T) {
	in := own(t, "--flexvolume-timeout", "3s", "--flexvolume-attach-timeout", "3s", "--flexvolume-init-timeout", "3s")
	f := flexOn(tellOn(t, in))
	const init = "#!/bin/sh\n[ $1 = init ] && { echo '{\"status\":\"Success\",\"capabilities\":{\"attach\":false}}'; exit; }\n"
	for name, text := range map[string]string{
		"bad/hangs":    `[ $1 = mount ] && { echo "waiting for the server" >&2; sleep 100 & wait; }; echo '{"status":"Success"}'`,
		"bad/rubbish":  `echo "mounting $2"; echo '{"status":"Success"}'`,
		"bad/liar":     `echo '{"status":"Success"}'; [ $1 = mount ] && exit 7`,
		"bad/floods":   `[ $1 = mount ] && head -c 100000000 /dev/zero | tr '\0' x; echo '{"status":"Success"}'`,
		"bad/crashes":  `[ $1 = mount ] && kill -SEGV $$; echo '{"status":"Success"}'`,
		"bad/forks":    `[ $1 = mount ] && sleep 30 & echo '{"status":"Success"}'`,
		"bad/stubborn": `[ $1 = unmount ] && { echo '{"status":"Failure","message":"not mounted"}'; exit 1; }; echo '{"status":"Success"}'`,
	} {
		f.must(flexdriver.InstallText(f.dir, name, init+text))
		f.loaded(name)
	}
	for _, name := range []string{"hangs", "rubbish", "liar", "floods", "crashes"} {
		f.apply(flexPod(name, "bad/"+name, ""))
	}
	f.install("good/dummy", "dummy")
	began := time.Now()
	f.apply(flexPod("fine", "good/dummy", "") + flexPod("forks", "bad/forks", "") + flexPod("stubborn", "bad/stubborn", ""))
	for _, name := range []string{"fine", "forks", "stubborn"} {
		f.ready(name)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the good ones took %s", took)
	}
	f.event("hangs", "FailedMount", `mount of FlexVolume driver bad/hangs gave no answer for 3s and was killed; its last line of stderr: "waiting for the server"`)
	f.event("rubbish", "FailedMount", "it wrote something else before its answer")
	f.event("liar", "FailedMount", "answered Success and ended with exit status 7")
	f.event("floods", "FailedMount", "it answered more than 1048576 bytes")
	f.event("crashes", "FailedMount", "it was ended by segmentation fault")
	if out := f.berth("why", "-n", f.ns, "pod/hangs"); !strings.Contains(out, "bad/hangs") {
		t.Errorf("berth why does not name the driver:\n%s", out)
	}
	f.apply(flexPod("nobody", "no/driver", "") + flexPod("novendor", "nfs", "") + flexPod("evil", "../../evil", ""))
	f.event("nobody", "FailedMount", "FlexVolume driver no/driver is not installed: there is no no~driver/driver in "+f.dir)
	f.event("novendor", "FailedMount", `"nfs" names no vendor`)
	f.event("evil", "FailedMount", `"../../evil" is not VENDOR/DRIVER`)
	f.must(flexdriver.InstallText(f.dir, "no/driver", init+`echo '{"status":"Success"}'`))
	f.ready("nobody") // as soon as it is there
	for _, p := range []string{"hangs", "rubbish", "liar", "floods", "crashes", "fine", "forks", "stubborn", "nobody", "novendor", "evil"} {
		f.removePod(p)
	}
	f.nothingOf("bad")
}

// Drivers are upgraded, broken and removed while their volumes are in use.
func TestFlexVolumeDriversChangeInUse(t *testing.T) {
	f := flexOn(tell(t))
	state := f.install("turn/dummy", "dummy")
	f.apply(flexPod("app", "turn/dummy", "") + flexPod("left", "turn/dummy", ""))
	dir, left := f.dataDir("app"), f.dataDir("left")
	before := mountAt(f.story, dir).ID
	f.install("turn/dummy", "attachable") // the same name can do other things now
	f.until("the new capabilities in status", func() (bool, string) {
		out := f.berth("status")
		return strings.Contains(out, "turn/dummy") && strings.Contains(out, "2 volumes, attach yes"), out
	})
	f.apply(flexPod("new", "turn/dummy", ""))
	f.ready("new")
	if mountAt(f.story, dir).ID != before {
		t.Error("the volume in use was mounted anew")
	}
	f.removePod("app") // by the new one, which does not support unmount: the host unmounts
	f.removePod("new")
	f.until("detached", func() (bool, string) {
		v := flexdriver.Verbs(state)
		return slices.Contains(v, "detach"), fmt.Sprint(v)
	})
	f.must(os.RemoveAll(filepath.Join(f.dir, "turn~dummy")))
	f.until("status without it", func() (bool, string) {
		out := f.berth("status", "-o", "json")
		return !strings.Contains(out, `"name": "turn/dummy"`), out
	})
	if _, err := os.Stat(filepath.Join(left, "index.html")); err != nil {
		t.Errorf("the volume went with its driver: %v", err)
	}
	f.removePod("left")
	f.within(90*time.Second, "the host to unmount what nobody else can", func() (bool, string) {
		_, err := os.Lstat(left)
		return err != nil, left + " is there"
	})
	f.install("turn/dummy", "attachable")
	f.nothingOf("turn") // what only the driver could detach is detached now that it is back
}

// kill -9 and a new start while volumes are mounted: they stay as they are, and go when their pods go.
func TestFlexVolumesSurviveARestart(t *testing.T) {
	for _, attaches := range []string{"by the controller", "by the node"} {
		t.Run(attaches, func(t *testing.T) {
			in := own(t, fmt.Sprintf("--enable-controller-attach-detach=%v", attaches == "by the controller"))
			f := flexOn(tellOn(t, in))
			state := f.install("re/att", "attachable")
			disk := f.install("re/disk", "disk")
			f.Cleanup(func() { detachAll(f, disk) })
			f.install("re/dummy", "dummy")
			f.apply(f.pv("re/att", "att", "") + f.pv("re/disk", "disk", "") + flexPod("dummy", "re/dummy", "") + flexPod("inline", "re/att", "") + flexPod("away", "re/att", ""))
			before := map[string]int{}
			names := []string{"att", "disk", "dummy", "inline"}
			for _, name := range append(names, "away") {
				before[name] = mountAt(f.story, f.dataDir(name)).ID
			}
			managed := strings.Contains(f.kubectl("get", "nodes", "-o", "yaml"), "controller-managed-attach-detach")
			if managed != (attaches == "by the controller") {
				t.Errorf("the node is marked for the controller: %v", managed)
			}
			f.must(in.Kill())
			f.must(in.Start(context.Background()))
			for _, name := range names {
				if after := mountAt(f.story, f.dataDir(name)).ID; after != before[name] {
					t.Errorf("%s was mounted anew", name)
				}
			}
			for _, name := range append(names, "away") {
				f.removePod(name)
			}
			f.until("detached", func() (bool, string) {
				left, _ := os.ReadDir(filepath.Join(state, "attached"))
				out, _ := exec.Command("losetup", "-j", filepath.Join(disk, "disks", f.ns+"-disk")).Output()
				return len(left) == 0 && len(out) == 0, fmt.Sprint(left, string(out))
			})
			f.nothingOf("re")
		})
	}
}

// berth down with volumes mounted, running and not, leaves nothing mounted.
func TestFlexVolumesAtTheEnd(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running %v", running), func(t *testing.T) {
			in := own(t)
			f := flexOn(tellOn(t, in))
			state := f.install("end/dummy", "dummy")
			f.apply(flexPod("app", "end/dummy", ""))
			f.ready("app")
			if !running {
				f.must(in.Kill())
			}
			f.must(in.Down(context.Background()))
			f.must(in.Settled(instance.World.Empty))
			if v := flexdriver.Verbs(state); v[len(v)-1] != "unmount" {
				t.Errorf("the driver was not asked: %v", v)
			}
		})
	}
}

// What old texts have and the API of today refuses, or nothing looks at.
func TestWhatTheAPIRefusesOfFlexVolumes(t *testing.T) {
	f := flexOn(tell(t))
	f.install("old/dummy", "dummy")
	for line, want := range map[string]string{
		`, options: {size: 10}`:                    "cannot unmarshal number",
		`, options: {readonly: true}`:              "cannot unmarshal bool",
		`, options: {kubernetes.io/readwrite: ro}`: "kubernetes.io and k8s.io namespaces are reserved",
	} {
		_, err := f.in.BerthInput(f.ctx, flexPod("bad", "old/dummy", line), "kubectl", "apply", "-n", f.ns, "-f", "-")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
	_, err := f.in.BerthInput(f.ctx, strings.Replace(flexPod("bad", "X", ""), "driver: X", "fsType: nfs", 1), "kubectl", "apply", "-n", f.ns, "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "flexVolume.driver: Required value") {
		t.Errorf("no driver: %v", err)
	}
	f.apply(strings.Replace(f.pv("old/dummy", "opts", ""), "flexVolume:", "mountOptions: [hard]\n  flexVolume:", 1))
	defer f.kubectl("delete", "pv", f.ns+"-opts", "--wait=false")
	f.event("opts", "FailedMount", "mount options are not supported for this volume type")
	if out := f.berth("why", "-n", f.ns, "pvc/opts"); !strings.Contains(out, "spec.mountOptions") {
		t.Errorf("berth why does not name the line:\n%s", out)
	}
	f.removePod("opts")
}
