package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/test/instance"
)

// engines is an instance that serves container engines.
type engines struct {
	*story
	socket string
}

const pluginName = "berth-e2e"

func serveEngines(t *testing.T) *engines {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-plugins-") // short: a socket's path has a limit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in := own(t, "--pool-size", "6Gi", "--docker-plugin", pluginName, "--docker-plugin-dir", dir)
	e := &engines{story: tellOn(t, in), socket: filepath.Join(dir, pluginName+".sock")}
	e.served()
	return e
}

// served waits for the plugin, which comes a moment after the instance is ready.
func (e *engines) served() {
	e.Helper()
	if err := e.in.WaitOutput(e.ctx, "container engines find plugin "+pluginName); err != nil {
		e.Fatal(err)
	}
}

// again is another start after a death or a stop.
func (e *engines) again() {
	e.Helper()
	if err := e.in.Start(e.ctx); err != nil {
		e.Fatal(err)
	}
	client, err := e.in.Client()
	if err != nil {
		e.Fatal(err)
	}
	e.client = client
	e.served()
}

// call speaks to the plugin as dockerd does: its headers, a body of JSON.
func (e *engines) call(method string, body string) (answer map[string]any, err error) {
	e.Helper()
	c := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", e.socket)
		}}}
	r, err := http.NewRequestWithContext(e.ctx, http.MethodPost, "http://plugin/"+method, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	r.Header.Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("%s answered %d %q: %w", method, resp.StatusCode, b, err)
	}
	if said, _ := answer["Err"].(string); said != "" || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", said)
	}
	return answer, nil
}

func (e *engines) must(method, body string) map[string]any {
	e.Helper()
	answer, err := e.call(method, body)
	if err != nil {
		e.Fatalf("%s %s: %v", method, body, err)
	}
	return answer
}

// refused wants an error with text.
func (e *engines) refused(method, body, text string) {
	e.Helper()
	if answer, err := e.call(method, body); err == nil || !strings.Contains(err.Error(), text) {
		e.Errorf("%s %s: %v %v, want an error with %q", method, body, answer, err, text)
	}
}

func (e *engines) mount(name, id string) string {
	e.Helper()
	path, _ := e.must("VolumeDriver.Mount", fmt.Sprintf(`{"Name":%q,"ID":%q}`, name, id))["Mountpoint"].(string)
	if !mountedAt(e.T, path) {
		e.Fatalf("nothing is mounted at %q", path)
	}
	return path
}

func (e *engines) unmount(name, id string) {
	e.Helper()
	e.must("VolumeDriver.Unmount", fmt.Sprintf(`{"Name":%q,"ID":%q}`, name, id))
}

func mountedAt(t *testing.T, path string) bool {
	t.Helper()
	var st unix.Statx_t
	return path != "" && unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st) == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// Docker's side of the plugin, without Docker: what dockerd sends, over restarts and a death of berth.
func TestVolumePlugin(t *testing.T) {
	e := serveEngines(t)
	e.must("Plugin.Activate", "")
	e.must("VolumeDriver.Create", `{"Name":"My_Data","Opts":{"size":"512Mi"}}`)
	e.must("VolumeDriver.Create", `{"Name":"My_Data","Opts":{"size":"512Mi"}}`)
	e.refused("VolumeDriver.Create", `{"Name":"My_Data","Opts":{"size":"1Gi"}}`, "exists with other options (size=512Mi")
	for given, want := range map[string]string{
		`{"size":"banana"}`:              "is not a size",
		`{"sise":"1Gi"}`:                 "the options are class, clone, fsType, size, snapshot",
		`{"class":"nope"}`:               "there is no class nope",
		`{"snapshot":"a","clone":"b"}`:   "exclude each other",
		`{"snapshot":"a"}`:               "there is no snapshot a",
		`{"clone":"a"}`:                  "there is no volume a to clone",
		`{"fsType":"xfs","size":"10Mi"}`: "xfs needs 300Mi",
		`{"fsType":"zfs"}`:               "ext4, xfs and btrfs",
	} {
		e.refused("VolumeDriver.Create", `{"Name":"bad","Opts":`+given+`}`, want)
	}
	e.refused("VolumeDriver.Get", `{"Name":"bad"}`, "no such volume")

	path := e.mount("My_Data", "one")
	if found, err := os.ReadDir(path); err != nil || len(found) > 0 {
		t.Errorf("a new volume holds %v %v", found, err)
	}
	if err := os.WriteFile(filepath.Join(path, "precious"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := e.mount("My_Data", "two"); again != path {
		t.Errorf("the second mount is at %s, the first at %s", again, path)
	}
	e.refused("VolumeDriver.Remove", `{"Name":"My_Data"}`, "in use by a container (mount one)")
	if got := e.must("VolumeDriver.Path", `{"Name":"My_Data"}`)["Mountpoint"]; got != path {
		t.Errorf("path %v", got)
	}

	if err := e.in.Kill(); err != nil {
		t.Fatal(err)
	}
	e.again()
	if again := e.mount("My_Data", "two"); again != path { // as dockerd does when it does not know the answer
		t.Errorf("after a kill at %s, before at %s", again, path)
	}
	e.unmount("My_Data", "one")
	if err := e.in.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(e.socket); !os.IsNotExist(err) {
		t.Errorf("the socket after a stop: %v", err)
	}
	if !mountedAt(t, path) {
		t.Error("a stop unmounted the volume")
	}
	e.again()
	e.refused("VolumeDriver.Remove", `{"Name":"My_Data"}`, "in use by a container (mount two)")
	e.unmount("My_Data", "two")
	if mountedAt(t, path) {
		t.Error("still mounted without a caller")
	}
	e.unmount("My_Data", "two")

	// It is a claim: snapshots and growth work on it.
	e.berth("volume", "-n", "docker", "snapshot", "My_Data", "before")
	e.must("VolumeDriver.Create", `{"Name":"restored","Opts":{"snapshot":"before"}}`)
	e.must("VolumeDriver.Create", `{"Name":"copied","Opts":{"clone":"My_Data","size":"768Mi"}}`)
	e.refused("VolumeDriver.Create", `{"Name":"small","Opts":{"snapshot":"before","size":"100Mi"}}`, "less than snapshot before has")
	for _, name := range []string{"restored", "copied"} {
		at := e.mount(name, "one")
		if b, err := os.ReadFile(filepath.Join(at, "precious")); string(b) != "data" {
			t.Errorf("%s: %q %v", name, b, err)
		}
		e.unmount(name, "one")
	}
	if out := e.berth("why", "-n", "docker", "pvc/copied"); !strings.Contains(out, "copied") {
		t.Errorf("why: %s", out)
	}
	e.berth("kubectl", "-n", "docker", "delete", "volumesnapshot", "before")
	for _, name := range []string{"My_Data", "restored", "copied"} {
		e.must("VolumeDriver.Remove", fmt.Sprintf(`{"Name":%q}`, name))
	}
	if got := e.must("VolumeDriver.List", "{}")["Volumes"]; len(got.([]any)) > 0 {
		t.Errorf("left: %v", got)
	}
}

// A mount that cannot be is told with its reason, and one that berth's end interrupts is undone: nobody counts.
func TestVolumePluginGivesUp(t *testing.T) {
	e := serveEngines(t)
	e.must("VolumeDriver.Create", `{"Name":"big","Opts":{"size":"1Ti"}}`)
	e.refused("VolumeDriver.Mount", `{"Name":"big","ID":"one"}`, "room")
	none := func(what string) {
		t.Helper()
		pods, err := e.client.CoreV1().Pods("docker").List(e.ctx, metav1.ListOptions{})
		if err != nil || len(pods.Items) > 0 {
			t.Errorf("%s: %v %v", what, pods.Items, err)
		}
	}
	none("after a mount that was refused")
	told := make(chan error, 1)
	go func() {
		_, err := e.call("VolumeDriver.Mount", `{"Name":"big","ID":"two"}`)
		told <- err
	}()
	e.until("the mount to have begun", func() (bool, string) {
		pods, err := e.client.CoreV1().Pods("docker").List(e.ctx, metav1.ListOptions{})
		return err == nil && len(pods.Items) > 0, fmt.Sprint(err)
	})
	if err := e.in.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err == nil {
		t.Error("a mount that berth's end interrupted succeeded")
	}
	e.again()
	none("after a stop in the middle of a mount")
	e.must("VolumeDriver.Remove", `{"Name":"big"}`)
}

// Killed where only the plugin comes by, the same request again completes. (test/kill has the namespace, too.)
func TestVolumePluginKilled(t *testing.T) {
	e := serveEngines(t)
	for _, point := range []string{"docker/clear-root:before", "docker/clear-root:after"} {
		if err := e.in.Stop(); err != nil {
			t.Fatal(err)
		}
		e.in.Env = []string{boundary.EnvKillAt + "=" + point}
		e.again()
		e.must("VolumeDriver.Create", `{"Name":"data","Opts":{"size":"64Mi"}}`)
		if answer, err := e.call("VolumeDriver.Mount", `{"Name":"data","ID":"one"}`); err == nil {
			t.Errorf("%s: answered %v", point, answer)
		}
		<-e.in.Ended()
		e.in.Env = nil
		e.again()
		path := e.mount("data", "one")
		if found, err := os.ReadDir(path); err != nil || len(found) > 0 {
			t.Errorf("%s: a new volume holds %v %v", point, found, err)
		}
		e.unmount("data", "one")
		e.must("VolumeDriver.Remove", `{"Name":"data"}`)
	}
}

// Two instances do not fight for one name, and one that nobody told a name serves none here.
func TestVolumePluginTaken(t *testing.T) {
	e := serveEngines(t)
	dir, err := os.MkdirTemp("", "berth-own-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	in, err := instance.New(dir, "--pool-size", "2Gi", "--docker-plugin", pluginName, "--docker-plugin-dir", filepath.Dir(e.socket))
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Start(e.ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-in.Ended():
		if !strings.Contains(in.Output(), "served by another process") || in.ExitCode() == 0 {
			t.Errorf("exit code %d: %s", in.ExitCode(), in.Output())
		}
	case <-time.After(time.Minute):
		t.Errorf("still running: %s", in.Output())
	}
	if err := in.Down(e.ctx); err != nil {
		t.Error(err)
	}
	e.must("VolumeDriver.List", "{}")
}

// podman is the real one, with images and volumes of its own.
type podman struct {
	*engines
	env []string
}

// podmanPackages is what the test needs of Debian.
const podmanPackages = "podman crun conmon busybox-static"

func newPodman(e *engines) *podman {
	e.Helper()
	for _, program := range []string{"podman", "crun", "conmon", "busybox", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			e.Fatalf("%v: apt-get install --no-install-recommends %s", err, podmanPackages)
		}
	}
	dir := e.TempDir()
	runtime := filepath.Join(dir, "crun")
	// crun refuses controllers of cgroup v2 beside v1; a container without cgroups can do without seeing them.
	script := "#!/bin/sh\nexec unshare --mount --propagation slave sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"' crun \"$@\"\n"
	conf := fmt.Sprintf("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n[engine.runtimes]\ncrun = [%q]\n[engine.volume_plugins]\n%s = %q\n", runtime, pluginName, e.socket)
	storage := fmt.Sprintf("[storage]\ndriver = \"vfs\"\nrunroot = %q\ngraphroot = %q\n", filepath.Join(dir, "run"), filepath.Join(dir, "graph"))
	for path, text := range map[string]string{runtime: script, filepath.Join(dir, "containers.conf"): conf, filepath.Join(dir, "storage.conf"): storage} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			e.Fatal(err)
		}
	}
	p := &podman{engines: e, env: append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(dir, "containers.conf"), "CONTAINERS_STORAGE_CONF="+filepath.Join(dir, "storage.conf"))}
	e.Cleanup(func() { _, _ = p.try("rm", "--all", "--force", "--time", "0") })

	// An image from nothing but busybox: no registry is asked.
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "data"), 0o755); err != nil {
		e.Fatal(err)
	}
	busybox, _ := exec.LookPath("busybox")
	for _, args := range [][]string{
		{"cp", busybox, filepath.Join(root, "busybox")},
		{"sh", "-c", "echo from the image > " + filepath.Join(root, "data", "seed")},
		{"tar", "-C", root, "-cf", filepath.Join(dir, "root.tar"), "."},
	} {
		if out, err := exec.CommandContext(e.ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			e.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	p.must("import", "--quiet", filepath.Join(dir, "root.tar"), "busybox:e2e")
	return p
}

func (p *podman) try(args ...string) (string, error) {
	c := exec.CommandContext(context.WithoutCancel(p.ctx), "podman", args...)
	c.Env = p.env
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (p *podman) must(args ...string) string {
	p.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.Fatalf("podman %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// run is `podman run` with what a container needs on a machine without CAP_SYS_RESOURCE and cgroup v2.
func (p *podman) run(args ...string) []string {
	return append([]string{"run", "--cgroups=disabled", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, args...)
}

// A volume's life with the real Podman: made, filled from the image, read by another container, kept over a restart of
// berth under a running container, removed.
func TestPodman(t *testing.T) {
	e := serveEngines(t)
	p := newPodman(e)
	p.must("volume", "create", "--driver", pluginName, "-o", "size=512Mi", "data")
	if out := p.must("volume", "ls", "--format", "{{.Driver}} {{.Name}}"); !strings.Contains(out, pluginName+" data") {
		t.Errorf("volume ls: %s", out)
	}
	out := p.must(p.run("--rm", "-v", "data:/data", "busybox:e2e", "/busybox", "sh", "-c", "/busybox cat /data/seed; echo written > /data/precious; /busybox grep ' /data ' /proc/mounts")...)
	if !strings.Contains(out, " /data ext4 ") {
		t.Errorf("what is mounted: %s", out)
	}
	if !strings.Contains(out, "from the image") {
		t.Errorf("an image's files are not in the new volume: %s", out)
	}
	if c, err := e.client.CoreV1().PersistentVolumeClaims("docker").Get(e.ctx, "data", metav1.GetOptions{}); err != nil || c.Status.Phase != "Bound" {
		t.Errorf("claim: %v %v", c.Status, err)
	}
	if out := e.berth("volume", "list", "-A"); !strings.Contains(out, "data") {
		t.Errorf("volume list: %s", out)
	}

	p.must(p.run("--detach", "--name", "holder", "-v", "data:/data", "busybox:e2e", "/busybox", "sleep", "600")...)
	if out, err := p.try("volume", "rm", "data"); err == nil || !strings.Contains(out, "used") {
		t.Errorf("removed in use: %s", out)
	}
	if out, err := e.in.Berth(e.ctx, "volume", "-n", "docker", "rm", "data"); err == nil || !strings.Contains(err.Error(), "in use by a container") {
		t.Errorf("removed in use: %s %v", out, err)
	}
	if err := e.in.Kill(); err != nil {
		t.Fatal(err)
	}
	e.again()
	if out := p.must(p.run("--rm", "-v", "data:/data:ro", "busybox:e2e", "/busybox", "cat", "/data/precious")...); out != "written" {
		t.Errorf("the data: %s", out)
	}
	if out, err := e.in.Berth(e.ctx, "volume", "-n", "docker", "unmount", "--force", "data"); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("forced under a running container: %s %v", out, err)
	}
	if out, err := e.in.Berth(e.ctx, "down"); err == nil || !strings.Contains(err.Error(), "volume data is in use by process") {
		t.Errorf("down under a running container: %s %v", out, err)
	}
	p.must("exec", "holder", "/busybox", "cat", "/data/precious")
	p.must("rm", "--force", "--time", "0", "holder")
	e.until("no mount left", func() (bool, string) {
		w, err := e.in.World()
		return err == nil && len(w.PodMounts()) == 0, fmt.Sprint(w.PodMounts(), err)
	})
	p.must("volume", "rm", "data")
	if claims, err := e.client.CoreV1().PersistentVolumeClaims("docker").List(e.ctx, metav1.ListOptions{}); err != nil || len(claims.Items) > 0 {
		t.Errorf("left: %v %v", claims.Items, err)
	}

	if out, err := p.try("volume", "create", "--driver", pluginName, "-o", "size=banana", "bad"); err == nil || !strings.Contains(out, `size "banana" is not a size`) {
		t.Errorf("a banana: %s %v", out, err)
	}
	p.must("volume", "create", "--driver", pluginName, "-o", "size=1Ti", "big")
	if out, err := p.try(p.run("--rm", "-v", "big:/data", "busybox:e2e", "/busybox", "true")...); err == nil || !strings.Contains(out, "room") {
		t.Errorf("a volume beyond the pool: %s %v", out, err)
	}
	p.must("volume", "rm", "big")
}
