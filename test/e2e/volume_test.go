package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/test/boundaries"
)

// byName is an instance whose volumes are used by name, at directories of this host.
type byName struct {
	*story
	at string
}

func useByName(t *testing.T) *byName {
	t.Helper()
	// The data directory's neighbour, made first: what is mounted in it goes before it is removed.
	at, err := os.MkdirTemp("", "berth-srv-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(at, "data"), unix.UMOUNT_NOFOLLOW)
		if left, _ := os.ReadDir(at); len(left) > 0 && mountedAt(t, filepath.Join(at, left[0].Name())) {
			t.Errorf("still mounted after berth down: %v", left)
			return
		}
		os.RemoveAll(at)
	})
	return &byName{story: tellOn(t, own(t, "--pool-size", "6Gi")), at: at}
}

func (b *byName) volume(args ...string) string {
	b.Helper()
	return b.berth(append([]string{"volume"}, args...)...)
}

func (b *byName) refused(text string, args ...string) {
	b.Helper()
	out, err := b.in.Berth(b.ctx, append([]string{"volume"}, args...)...)
	if err == nil || !strings.Contains(err.Error(), text) {
		b.Errorf("berth volume %s: %s %v, want an error with %q", strings.Join(args, " "), out, err, text)
	}
}

func (b *byName) path(name string) string { return filepath.Join(b.at, name) }

func (b *byName) holds(dir, want string) {
	b.Helper()
	got, err := os.ReadFile(filepath.Join(dir, "precious"))
	if err != nil || string(got) != want {
		b.Errorf("%s: %q %v, want %q", dir, got, err, want)
	}
}

func (b *byName) write(dir, text string) {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "precious"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}

// A volume by name, as a script or a unit uses it: made, mounted, kept over restarts and berth down, copied, grown,
// removed.
func TestVolumeByName(t *testing.T) {
	b := useByName(t)
	data := b.path("data")
	b.volume("create", "data", "--size", "512Mi")
	b.volume("create", "data", "--size", "512Mi")
	b.refused("exists with other options", "create", "data", "--size", "1Gi")
	b.refused(`size "banana" is not a size`, "create", "bad", "--size", "banana")
	b.refused("there is no class nope", "create", "bad", "--class", "nope")
	b.refused("nobody has mounted it", "snapshot", "data")
	b.refused("nobody has mounted it", "resize", "data", "1Gi")
	b.refused("no such volume", "mount", "nope", data)
	b.refused("over /", "mount", "data", "/")
	b.refused("in the way of the data directory", "mount", "data", filepath.Join(b.in.Dir, "pods", "x"))
	b.refused("is not a directory", "mount", "data", "/etc/hostname")
	b.refused("is not empty", "mount", "data", "/etc")

	b.volume("mount", "data", data)
	b.volume("mount", "data", data)
	b.write(data, "first")
	b.volume("create", "other")
	b.refused("taken by volume default/data", "mount", "other", data)
	b.refused("in use by the mount at "+data, "rm", "data")
	if out := b.volume("list"); !strings.Contains(out, "the mount at "+data) {
		t.Errorf("list: %s", out)
	}
	var listed []struct{ Name, Path string }
	b.until("list to tell the path", func() (bool, string) {
		err := json.Unmarshal([]byte(b.volume("list", "-o", "json")), &listed)
		return err == nil && len(listed) == 2 && listed[0].Path != "", fmt.Sprint(listed, err)
	})

	if err := b.in.Kill(); err != nil {
		t.Fatal(err)
	}
	b.holds(data, "first") // mounted, whoever runs
	b.start()
	b.holds(data, "first")
	b.down()
	if mountedAt(t, data) {
		t.Error("mounted after berth down")
	}
	b.start()
	b.until("the mount to be back", func() (bool, string) { return mountedAt(t, data), "" })
	b.holds(data, "first")

	b.volume("snapshot", "data", "before")
	b.write(data, "second")
	b.volume("restore", "before", "old", "--size", "600Mi")
	b.volume("mount", "old", b.path("old"), "--read-only")
	b.holds(b.path("old"), "first")
	if err := os.WriteFile(filepath.Join(b.path("old"), "x"), nil, 0o600); err == nil {
		t.Error("a read-only mount was written")
	}
	b.refused("less than snapshot before has", "restore", "before", "small", "--size", "100Mi")
	b.refused("there is no snapshot nope", "restore", "nope", "small")
	b.refused("cannot shrink", "resize", "data", "100Mi")
	b.volume("resize", "data", "768Mi")
	b.holds(data, "second")

	hold := exec.Command("sleep", "600")
	hold.Dir = data
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	b.refused("(sleep)", "unmount", "data")
	if out, err := b.in.Berth(b.ctx, "down"); err == nil || !strings.Contains(err.Error(), "(sleep)") {
		t.Errorf("down under a user: %s %v", out, err)
	}
	b.holds(data, "second")
	_ = hold.Process.Kill()
	_ = hold.Wait()
	b.volume("unmount", "data")
	b.volume("unmount", "data")
	b.volume("unmount", b.path("old"))
	if mountedAt(t, data) || mountedAt(t, b.path("old")) {
		t.Error("mounted after unmount")
	}
	b.kubectlIn("default", "delete", "volumesnapshot", "before")
	b.volume("rm", "data", "old", "other")
	b.refused("no such volume", "rm", "data")
	if out := b.volume("list", "-A"); !strings.HasPrefix(out, "none") {
		t.Errorf("left: %s", out)
	}
}

func (b *byName) kubectlIn(ns string, args ...string) {
	b.Helper()
	if _, err := b.in.Kubectl(b.ctx, append([]string{"-n", ns}, args...)...); err != nil {
		b.Fatal(err)
	}
}

func (b *byName) start() {
	b.Helper()
	if err := b.in.Start(b.ctx); err != nil {
		b.Fatal(err)
	}
	client, err := b.in.Client()
	if err != nil {
		b.Fatal(err)
	}
	b.client = client
}

func (b *byName) down() {
	b.Helper()
	if err := b.in.Down(b.ctx); err != nil {
		b.Fatal(err)
	}
}

// A unit waits for an instance that is started after it.
func TestVolumeMountWaits(t *testing.T) {
	b := useByName(t)
	b.volume("create", "data", "--size", "64Mi")
	if err := b.in.Stop(); err != nil {
		t.Fatal(err)
	}
	b.refused("no `berth up` is running", "mount", "data", b.path("data"))
	b.refused("none was started for 50ms", "mount", "--wait", "50ms", "data", b.path("data"))
	waits := make(chan error, 1)
	go func() {
		_, err := b.in.Berth(b.ctx, "volume", "mount", "--wait", "2m", "data", b.path("data"))
		waits <- err
	}()
	b.start()
	select {
	case err := <-waits:
		if err != nil || !mountedAt(t, b.path("data")) {
			t.Errorf("mount --wait: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("mount --wait did not return")
	}
	b.volume("unmount", "data")
	b.volume("rm", "data")
}

// Killed before and after each effect, berth or the command, the same command again completes, and nothing is left.
func TestVolumeKilledAnywhere(t *testing.T) {
	found, _, err := boundaries.Scan("../..")
	if err != nil {
		t.Fatal(err)
	}
	k := &killed{byName: useByName(t)}
	for _, f := range found {
		if strings.HasPrefix(f.Name, "volume/") && notInThisLife[f.Name] == "" {
			k.armed = append(k.armed, f.Name+":before", f.Name+":after")
		}
	}
	if err := k.in.Apply(k.ctx, staleClass); err != nil {
		t.Fatal(err)
	}
	if err := k.in.Stop(); err != nil {
		t.Fatal(err)
	}
	k.rise()
	data, second := k.path("data"), k.path("second")
	for _, step := range [][]string{
		{"create", "data", "--size", "320Mi", "--fs-type", "xfs"},
		{"mount", "data", data},
		{"mount", "data", second},
		{"snapshot", "data", "before"},
		{"resize", "data", "400Mi"},
		{"unmount", second},
		{"unmount", "data"},
		{"rm", "data"},
	} {
		k.completes(step)
	}
	if len(k.armed) > 0 {
		t.Errorf("nothing died at %q", k.armed)
	}
	k.kubectlIn("default", "delete", "volumesnapshot", "before")
	k.until("nothing left", func() (bool, string) {
		out := k.volume("list", "-A")
		return strings.HasPrefix(out, "none"), out
	})
	if mountedAt(t, data) || mountedAt(t, second) {
		t.Error("still mounted")
	}
	notes, err := os.ReadDir(filepath.Join(k.in.Dir, "volumes"))
	if err != nil || slices.ContainsFunc(notes, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".json") }) {
		t.Errorf("records left: %v %v", notes, err)
	}
}

// killed is an instance that dies, and whose commands die, at each of the armed points once.
type killed struct {
	*byName
	armed []string
}

// rise starts the instance with what is still armed.
func (k *killed) rise() {
	k.Helper()
	k.in.Env = []string{boundary.EnvKillAt + "=" + strings.Join(k.armed, ",")}
	k.in.CommandEnv = k.in.Env
	for !k.in.Running() {
		if err := k.in.Start(k.ctx); err != nil && !k.struck(err.Error()) { // it can die as soon as it is ready
			k.Fatal(err)
		}
	}
	client, err := k.in.Client()
	if err != nil {
		k.Fatal(err)
	}
	k.client = client
}

// struck disarms the point at which a process says that it died.
func (k *killed) struck(said string) bool {
	for i, p := range k.armed {
		if strings.Contains(said, "boundary: killed at "+p+"\n") {
			k.Logf("died at %s", p)
			k.armed = slices.Delete(k.armed, i, i+1)
			return true
		}
	}
	return false
}

// completes runs a command until it succeeds; each death is followed by a start.
func (k *killed) completes(step []string) {
	k.Helper()
	for tries := 0; ; tries++ {
		_, err := k.in.Berth(k.ctx, append([]string{"volume"}, step...)...)
		if err == nil {
			return
		}
		died := k.struck(err.Error() + "\n")
		if !died {
			select {
			case <-k.in.Ended():
				died = k.struck(k.in.Output())
			case <-time.After(time.Second):
			}
		}
		switch {
		case died:
			k.rise()
		case step[0] == "rm" && strings.Contains(err.Error(), "no such volume"):
			return // the command died after it
		case tries > 40:
			k.Fatalf("berth volume %s: %v\n%s", strings.Join(step, " "), err, k.in.Output())
		}
	}
}

// notInThisLife are boundaries that the steps do not cross, and why.
var notInThisLife = map[string]string{
	"volume/create-namespace": "the namespace default is there; test/kill starts without the namespace docker",
}

// staleClass was made from a class that has other parameters by now.
const staleClass = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: berth-block-xfs, annotations: {storage.berth.io/class-of: berth-block}}
provisioner: block.csi.berth.io
parameters: {csi.storage.k8s.io/fstype: xfs, former: "1"}
`

// The units in docs/ are ones that systemd takes.
func TestUnits(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("no systemd-analyze to look at the units with: apt-get install --no-install-recommends systemd")
	}
	units, err := filepath.Glob("../../docs/systemd/*.service")
	if err != nil || len(units) < 2 {
		t.Fatalf("units: %v %v", units, err)
	}
	dir := t.TempDir()
	program, err := filepath.Abs(filepath.Join(shared.Bin, "berth"))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "--man=no"}
	for _, u := range units {
		b, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Base(u))
		text := strings.ReplaceAll(string(b), "/usr/local/bin/berth", program)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, strings.Replace(path, "@.", "@data.", 1))
	}
	if err := os.Link(filepath.Join(dir, "berth-volume@.service"), filepath.Join(dir, "berth-volume@data.service")); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(verify, args...)
	c.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	if out, err := c.CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%q: %v\n%s", args, err, out)
	}
}
