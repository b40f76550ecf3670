package flexvolume

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"berth.io/berth/internal/plugin"
)

// recorder is a driver that notes its arguments, one a line, and answers what the test wrote into answer-CALL.
func (r *rig) recorder(name string) {
	r.Helper()
	r.install(name, `S=`+r.state+`
{ echo "- $1"; shift_=; for a in "$@"; do echo "$a"; done; } >>$S/log
[ -f "$S/answer-$1" ] && exec cat "$S/answer-$1"
echo '{"status":"Success"}'`)
}

func (r *rig) answer(call, json string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.state, "answer-"+call), []byte(json), 0o600); err != nil {
		r.Fatal(err)
	}
}

// args are the arguments of the last call-out of the kind.
func (r *rig) args(call string) []string {
	r.Helper()
	text, _ := os.ReadFile(filepath.Join(r.state, "log"))
	var last []string
	for _, block := range strings.Split("\n"+string(text), "\n- ") {
		if lines := strings.Split(strings.TrimSpace(block), "\n"); lines[0] == call {
			last = lines[2:]
		}
	}
	return last
}

func (r *rig) count(call string) int {
	text, _ := os.ReadFile(filepath.Join(r.state, "log"))
	return strings.Count("\n"+string(text), "\n- "+call+"\n")
}

func decoded(t *testing.T, text string) map[string]string {
	t.Helper()
	m := map[string]string{}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return m
}

// What mount gets: paths, options of the host, the pod's, secrets, then the user's.
func TestMountOptions(t *testing.T) {
	client := fake.NewClientset(
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "own"}, Type: "foo/cifs", Data: map[string][]byte{"user": []byte("anna"), "password": []byte("geheim")}},
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "opaque"}, Type: "Opaque", Data: map[string][]byte{"password": []byte("geheim")}},
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "vault", Name: "own"}, Type: "foo/cifs", Data: map[string][]byte{"password": []byte("other")}},
	)
	r := newRig(t, func(o *Options) { o.Client = client })
	r.recorder("foo/cifs")
	r.answer("init", `{"status":"Success","capabilities":{"attach":false,"fsGroup":false}}`)
	r.run()
	group := int64(1000)
	v := inPod("foo/cifs", "data")
	v.Source.FlexVolume = &v1.FlexVolumeSource{Driver: "foo/cifs", FSType: "cifs", ReadOnly: true, SecretRef: &v1.LocalObjectReference{Name: "own"}, Options: map[string]string{"a": "<&>", "server": "x"}}
	got, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v, FSGroup: &group})
	if err != nil || got.Path != filepath.Join(r.data, "pods/u1/volumes/foo~cifs/data") {
		t.Fatalf("%+v, %v", got, err)
	}
	args := r.args("mount")
	if len(args) != 2 || args[0] != got.Path {
		t.Fatalf("mount %q", args)
	}
	want := map[string]string{"kubernetes.io/fsType": "cifs", "kubernetes.io/readwrite": "ro", "kubernetes.io/pvOrVolumeName": "data",
		"kubernetes.io/pod.name": "app", "kubernetes.io/pod.namespace": "ns", "kubernetes.io/pod.uid": "u1", "kubernetes.io/serviceAccount.name": "robot",
		"kubernetes.io/mounterArgs.FsGroup": "1000", "kubernetes.io/secret/user": "YW5uYQ==", "kubernetes.io/secret/password": "Z2VoZWlt", "a": "<&>", "server": "x"}
	if fmt.Sprint(decoded(t, args[1])) != fmt.Sprint(want) {
		t.Errorf("options %v, want %v", decoded(t, args[1]), want)
	}
	if err := r.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "u1", SpecName: "data", Volume: v}); err != nil {
		t.Fatal(err)
	}
	if args := r.args("unmount"); len(args) != 1 || args[0] != got.Path {
		t.Errorf("unmount %q", args)
	}
	nothingBelow(t, filepath.Join(r.data, "pods"))

	v.Source.FlexVolume.SecretRef.Name = "opaque"
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err == nil || !strings.Contains(err.Error(), `secret ns/opaque is of type "Opaque"`) || !strings.Contains(err.Error(), "type: foo/cifs") {
		t.Error(err)
	}
	persistent := pv("foo/cifs", "pv1")
	persistent.PV.Spec.FlexVolume.SecretRef = &v1.SecretReference{Namespace: "vault", Name: "own"}
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: persistent}); err != nil {
		t.Fatal(err)
	}
	if o := decoded(t, r.args("mount")[1]); o["kubernetes.io/secret/password"] != "b3RoZXI=" || o["kubernetes.io/readwrite"] != "rw" {
		t.Errorf("%v", o)
	}
	persistent.PV.Spec.FlexVolume.SecretRef.Name = "none"
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: persistent, Again: true}); err == nil || !strings.Contains(err.Error(), "vault/none") {
		t.Error(err)
	}
}

// nothingBelow fails when a file or a directory other than empty parents is left.
func nothingBelow(t *testing.T, dir string) {
	t.Helper()
	_ = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			t.Errorf("left behind: %s", path)
		}
		return nil
	})
}

// attach, waitforattach, mountdevice, mount and the way back, with what each hands to the next.
func TestTheWayOfAnAttachableVolume(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/disk")
	r.run()
	r.answer("attach", `{"status":"Success","device":"/dev/x1"}`)
	r.answer("waitforattach", `{"status":"Success","device":"/dev/x2"}`)
	v := pv("k8s/disk", "pv1")
	v.PV.Spec.FlexVolume.Options = map[string]string{"size": "1"}
	if a, err := r.Attach(t.Context(), v, "n1"); err != nil || a.DevicePath != "/dev/x1" {
		t.Fatalf("%+v, %v", a, err)
	}
	common := map[string]string{"kubernetes.io/fsType": "", "kubernetes.io/readwrite": "rw", "kubernetes.io/pvOrVolumeName": "pv1", "size": "1"}
	if args := r.args("attach"); len(args) != 2 || fmt.Sprint(decoded(t, args[0])) != fmt.Sprint(common) || args[1] != "n1" {
		t.Errorf("attach %q", args)
	}
	if args := r.args("getvolumename"); len(args) != 1 || fmt.Sprint(decoded(t, args[0])) != fmt.Sprint(common) {
		t.Errorf("getvolumename %q", args)
	}
	if list, err := r.Attached(t.Context()); err != nil || len(list) != 1 || list[0].Name != "k8s/disk/pv1" || list[0].Node != "n1" || list[0].DevicePath != "/dev/x1" || list[0].Uncertain {
		t.Errorf("%+v, %v", list, err)
	}
	if err := r.Stage(t.Context(), plugin.StageRequest{Volume: v, DevicePath: "/dev/x1"}); err != nil {
		t.Fatal(err)
	}
	if args := r.args("waitforattach"); len(args) != 2 || args[0] != "/dev/x1" || fmt.Sprint(decoded(t, args[1])) != fmt.Sprint(common) {
		t.Errorf("waitforattach %q", args)
	}
	global := filepath.Join(r.data, "plugins/kubernetes.io/flexvolume/k8s/disk/mounts/pv1")
	if args := r.args("mountdevice"); len(args) != 3 || args[0] != global || args[1] != "/dev/x2" || fmt.Sprint(decoded(t, args[2])) != fmt.Sprint(common) {
		t.Errorf("mountdevice %q", args)
	}
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(r.data, "pods/u1/volumes/k8s~disk/pv1")
	e, ok := plugin.NewRegistry(r.Plugin).ExpanderOf(v.PV)
	if !ok || !e.RequiresFSResize() || e.Name() != "k8s/disk" {
		t.Fatal("no expander")
	}
	r.answer("expandvolume", `{"status":"Success","volumeNewSize":4096}`)
	if size, err := e.ExpandVolume(t.Context(), v.PV, resource.MustParse("3Ki"), resource.MustParse("1Ki")); err != nil || size.Value() != 4096 {
		t.Errorf("%v, %v", size, err)
	}
	if args := r.args("expandvolume"); len(args) != 4 || args[1] != global || args[2] != "3072" || args[3] != "1024" {
		t.Errorf("expandvolume %q", args)
	}
	if err := r.Expand(t.Context(), plugin.ExpandRequest{Volume: v, OldSize: 1024, NewSize: 4096}); err != nil {
		t.Error(err)
	}
	if args := r.args("expandfs"); len(args) != 5 || args[1] != "/dev/x2" || args[2] != target || args[3] != "4096" || args[4] != "1024" {
		t.Errorf("expandfs %q", args)
	}
	// What a new process finds, which knows the directories alone.
	p := New(Options{Dir: r.dir, DataDir: r.data, Node: "n1"})
	mounter, ok := plugin.NewRegistry(p).ByName("k8s/disk")
	if !ok {
		t.Fatal("no plugin of the driver's name")
	}
	found, err := mounter.(plugin.Mounter).Reconstruct("u1", "pv1", v1.PersistentVolumeFilesystem)
	if want := (plugin.Reconstructed{Name: "k8s/disk/pv1", SpecName: "pv1", Mode: "Filesystem", Path: target, GlobalPath: global, Attachable: true, Driver: "k8s/disk"}); err != nil || found != want {
		t.Errorf("%+v, %v", found, err)
	}
	if staged, err := p.StagedVolumes(); err != nil || len(staged) != 1 || staged[0].GlobalPath != global || staged[0].Name != "k8s/disk/pv1" {
		t.Errorf("%+v, %v", staged, err)
	}
	// Taken away with the directories alone.
	m, _ := plugin.NewRegistry(r.Plugin).ByName("k8s/disk")
	if err := m.(plugin.Mounter).Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "u1", SpecName: "pv1"}); err != nil {
		t.Error(err)
	}
	if err := r.Unstage(t.Context(), plugin.UnstageRequest{Name: found.Name, GlobalPath: global}); err != nil {
		t.Error(err)
	}
	if done, err := r.Detach(t.Context(), plugin.AttachedVolume{Name: "k8s/disk/pv1"}, "n1"); err != nil || !done {
		t.Error(err)
	}
	if args := r.args("detach"); len(args) != 2 || args[0] != "pv1" || args[1] != "n1" {
		t.Errorf("detach %q", args)
	}
	nothingBelow(t, r.data)
}

// A call-out that fails leaves nothing where it is known that it did nothing, and an uncertain volume where it is not.
func TestFailures(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/disk")
	r.run()
	v := pv("k8s/disk", "pv1")
	for _, uncertain := range []bool{false, true} { // in this order: what is uncertain stays noted
		answer := `{"status":"Failure","message":"no"}`
		if uncertain {
			answer = "rubbish"
		}
		for _, call := range []string{"mountdevice", "waitforattach", "mount"} {
			r.answer(call, answer)
			var err error
			if call == "mount" {
				_, err = r.Publish(t.Context(), plugin.PublishRequest{Volume: v})
			} else {
				err = r.Stage(t.Context(), plugin.StageRequest{Volume: v})
			}
			if err == nil || errors.Is(err, plugin.ErrUncertain) != uncertain || !strings.Contains(err.Error(), call+" of FlexVolume driver k8s/disk") {
				t.Errorf("%s answers %s: %v", call, answer, err)
			}
			if !uncertain {
				nothingBelow(t, r.data)
			}
			_ = os.Remove(filepath.Join(r.state, "answer-"+call))
		}
	}
	r.answer("getvolumename", "rubbish")
	if err := r.Stage(t.Context(), plugin.StageRequest{Volume: v}); err == nil || errors.Is(err, plugin.ErrUncertain) {
		t.Errorf("getvolumename has no effect: %v", err)
	}
	r.answer("getvolumename", `{"status":"Not supported"}`)
	r.answer("attach", "rubbish")
	if _, err := r.Attach(t.Context(), v, "n1"); err == nil {
		t.Error("attached")
	}
	if list, _ := r.Attached(t.Context()); len(list) != 1 || !list[0].Uncertain {
		t.Errorf("what may be attached: %+v", list)
	}
}

// isattached tells what is so; "Not supported" assumes that it is.
func TestStillAttached(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/disk")
	r.run()
	for _, c := range []struct {
		answer string
		want   bool
	}{{`{"status":"Success","attached":true}`, true}, {`{"status":"Success"}`, false}, {`{"status":"Not supported"}`, true}} {
		r.answer("isattached", c.answer)
		if got, err := r.StillAttached(t.Context(), pv("k8s/disk", "pv1"), "n1"); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.answer, got, err)
		}
	}
}

// A driver that fails for ever because nothing is mounted any more does not keep the pod for ever.
func TestUnmountOfWhatIsNotMounted(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/x")
	r.run()
	v := inPod("k8s/x", "data")
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	r.answer("unmount", `{"status":"Failure","message":"not mounted"}`)
	request := plugin.UnpublishRequest{PodUID: "u1", SpecName: "data", Volume: v}
	for range toleratedRefusals - 1 {
		if err := r.Unpublish(t.Context(), request); err == nil || !strings.Contains(err.Error(), "not mounted") {
			t.Fatal(err)
		}
	}
	if err := r.Unpublish(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	nothingBelow(t, r.data)
	if n := r.count("unmount"); n != toleratedRefusals {
		t.Errorf("asked %d times", n)
	}
}

// What somebody wrote below the mount point is not deleted.
func TestDataBelowTheMountPointStays(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/x")
	r.run()
	v := inPod("k8s/x", "data")
	got, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(got.Path, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "u1", SpecName: "data", Volume: v}); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(got.Path, "precious")); err != nil {
		t.Error(err)
	}
}

// A volume whose driver is gone is kept for a while, in case that the driver comes back, and then taken away without it.
func TestUnmountWithoutTheDriver(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/x")
	r.run()
	v := pv("k8s/x", "pv1")
	if err := r.Stage(t.Context(), plugin.StageRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.dir, "k8s~x")); err != nil {
		t.Fatal(err)
	}
	r.event("FlexVolumeDriverRemoved")
	request := plugin.UnpublishRequest{PodUID: "u1", SpecName: "pv1", Volume: v}
	if err := r.Unpublish(t.Context(), request); !errors.Is(err, plugin.ErrDriverMissing) || !strings.Contains(err.Error(), "is not installed") {
		t.Fatal(err)
	}
	r.table.mu.Lock()
	r.table.absent["k8s/x"] = time.Now().Add(-2 * driverGrace)
	r.table.mu.Unlock()
	if err := r.Unpublish(t.Context(), request); err != nil {
		t.Error(err)
	}
	if err := r.Unstage(t.Context(), plugin.UnstageRequest{Volume: v}); err != nil {
		t.Error(err)
	}
	if _, err := r.Detach(t.Context(), plugin.AttachedVolume{Name: "k8s/x/pv1"}, "n1"); !errors.Is(err, plugin.ErrDriverMissing) {
		t.Errorf("nobody but the driver can detach: %v", err)
	}
	nothingBelow(t, r.data)
}

// A record of another volume, or one torn apart, leads nowhere.
func TestForeignRecords(t *testing.T) {
	p := New(Options{Dir: t.TempDir(), DataDir: t.TempDir()})
	record := p.paths.publishedRecord("u1", "k8s/x", "data")
	for _, dir := range []string{filepath.Dir(record), p.paths.target("u1", "k8s/x", "data")} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	m := p.Of("k8s/x").(plugin.Mounter)
	for text, ok := range map[string]bool{
		`{"name":"k8s/x/u1^data","specName":"data"}`:      true,
		`{"name":"k8s/x/../../etc","specName":"data"}`:    false,
		`{"name":"k8s/other/u1^data","specName":"data"}`:  false,
		`{"name":"k8s/x/u1^data","spec`:                   false,
		`{"name":"k8s/x/u1^data","specName":"../../etc"}`: false,
	} {
		if err := os.WriteFile(record, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := m.Reconstruct("u1", "data", v1.PersistentVolumeFilesystem); (err == nil) != ok {
			t.Errorf("%s: %+v, %v", text, r, err)
		}
	}
	if err := os.Remove(record); err != nil { // as a kubelet leaves it
		t.Fatal(err)
	}
	if r, err := m.Reconstruct("u1", "data", v1.PersistentVolumeFilesystem); err != nil || r.Name != "k8s/x/u1^data" || r.Attachable {
		t.Errorf("%+v, %v", r, err)
	}
	for _, path := range []string{"", "/etc", p.paths.plugin() + "/k8s/x/mounts/../../../..", p.paths.plugin() + "/k8s/x/other/pv"} {
		if err := p.Unstage(t.Context(), plugin.UnstageRequest{GlobalPath: path}); err == nil {
			t.Errorf("unstaged %q", path)
		}
	}
	if err := p.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "..", SpecName: "data", Volume: inPod("k8s/x", "data")}); err == nil {
		t.Error("unpublished outside of the pods")
	}
}

// TestWhatIsStagedIsSharedByAllPods: the pod that comes first does not decide for those that follow on the node.
func TestWhatIsStagedIsSharedByAllPods(t *testing.T) {
	for name, tc := range map[string]struct {
		volume func() *plugin.Volume
		want   bool
	}{
		"a pod that writes": {func() *plugin.Volume { return pv("k8s/x", "p") }, false},
		"a pod that reads": {func() *plugin.Volume {
			v := pv("k8s/x", "p")
			v.ReadOnly = true
			v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}
			return v
		}, false},
		"the volume itself is read-only": {func() *plugin.Volume {
			v := pv("k8s/x", "p")
			v.PV.Spec.FlexVolume.ReadOnly = true
			return v
		}, true},
		"other nodes may read it, too": {func() *plugin.Volume {
			v := pv("k8s/x", "p")
			v.ReadOnly = true
			v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce, v1.ReadOnlyMany}
			return v
		}, true},
		"a pod's own": {func() *plugin.Volume {
			v := inPod("k8s/x", "p")
			v.Source.FlexVolume.ReadOnly = true
			return v
		}, true},
	} {
		if got := stagedReadOnly(tc.volume()); got != tc.want {
			t.Errorf("%s: staged read-only is %v", name, got)
		}
	}
}

// TestTheLongestName: a PersistentVolume's name may have 253 bytes, and a file's 255. A volume of such a name is attached, staged,
// published, found again by a new process and taken away, and one whose name differs at the end alone is another.
func TestTheLongestName(t *testing.T) {
	r := newRig(t)
	r.recorder("k8s/x")
	r.run()
	volumes := map[string]*plugin.Volume{}
	for _, end := range []string{"a", "b"} {
		name := strings.Repeat("n", 252) + end
		volumes[name] = pv("k8s/x", name)
		if _, err := r.Attach(t.Context(), volumes[name], "n1"); err != nil {
			t.Fatal(err)
		}
		if err := r.Stage(t.Context(), plugin.StageRequest{Volume: volumes[name]}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: volumes[name]}); err != nil {
			t.Fatal(err)
		}
	}
	p := New(Options{Dir: r.dir, DataDir: r.data, Node: "n1"})
	if list, err := p.Attached(t.Context()); err != nil || len(list) != len(volumes) {
		t.Errorf("attached: %v, %v", list, err)
	}
	staged, err := p.StagedVolumes()
	if err != nil || len(staged) != len(volumes) {
		t.Errorf("staged: %v, %v", staged, err)
	}
	for _, s := range staged {
		v := volumes[s.SpecName]
		if v == nil || s.GlobalPath != r.GlobalPath(v) || s.Name != uniqueName("k8s/x", s.SpecName) {
			t.Errorf("staged: %+v", s)
		}
	}
	m := p.Of("k8s/x").(plugin.Mounter)
	for name, v := range volumes {
		if found, err := m.Reconstruct("u1", name, v1.PersistentVolumeFilesystem); err != nil || found.Name != uniqueName("k8s/x", name) {
			t.Errorf("published: %+v, %v", found, err)
		}
		if err := r.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "u1", SpecName: name, Volume: v}); err != nil {
			t.Error(err)
		}
		if err := r.Unstage(t.Context(), plugin.UnstageRequest{Name: uniqueName("k8s/x", name), GlobalPath: r.GlobalPath(v)}); err != nil {
			t.Error(err)
		}
		if done, err := r.Detach(t.Context(), plugin.AttachedVolume{Name: uniqueName("k8s/x", name)}, "n1"); err != nil || !done {
			t.Error(done, err)
		}
	}
	nothingBelow(t, r.data)
}

// What a driver warns of although it succeeded, a forced unmount above all, becomes an event, once for each unmount, without what could be
// another line. Nothing to warn of, or a message alone, is no event.
func TestWarnings(t *testing.T) {
	r := newRig(t)
	r.recorder("foo/cifs")
	r.answer("init", `{"status":"Success","capabilities":{"attach":false}}`)
	r.run()
	r.event("FlexVolumeDriverLoaded")
	v := inPod("foo/cifs", "data")
	for _, answered := range []struct{ json, want string }{
		{`{"status":"Success","message":"all is well"}`, ""},
		{`{"status":"Success","message":"m","warning":"the unmount was forced:\nwhat had been written is lost"}`,
			"Warning FlexVolumeDriverWarning unmount of FlexVolume driver foo/cifs for volume data: the unmount was forced: what had been written is lost"},
	} {
		r.answer("unmount", answered.json)
		if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
			t.Fatal(err)
		}
		if err := r.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "u1", SpecName: "data", Volume: v}); err != nil {
			t.Fatal(err)
		}
		said := ""
		select {
		case said = <-r.events.Events:
		default:
		}
		if said != answered.want {
			t.Errorf("%s: said %q, want %q", answered.json, said, answered.want)
		}
	}
}
