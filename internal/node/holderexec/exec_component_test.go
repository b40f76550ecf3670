//go:build component

package holderexec

import (
	"bytes"
	"context"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

func TestMain(m *testing.M) {
	Main() // the helper is this test binary
	os.Exit(m.Run())
}

// run runs a shell line with the mounts and returns what it printed.
func run(t *testing.T, s Spec, line string) (string, int, error) {
	t.Helper()
	if s.Env == nil {
		s.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	}
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code, err := Run(ctx, s, []string{"sh", "-c", line}, Stdio{In: strings.NewReader("from stdin"), Out: &out, Err: &out})
	return strings.TrimSpace(out.String()), code, err
}

func volume(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A mount path at the root, one deep in a directory that exists, one over a directory that exists, one whose parents
// are missing: the command sees all, the host sees none.
func TestMountPathsThatTheHostDoesNotHave(t *testing.T) {
	src := volume(t, map[string]string{"f": "hello"})
	exists := t.TempDir()
	targets := []string{"/berth-exec-test", "/berth-exec-other/deep/er", "/usr/berth-exec-test", "/usr/share/berth-x/y", exists}
	s := Spec{}
	for _, target := range targets {
		s.Mounts = append(s.Mounts, Mount{Volume: "v", Source: src, Target: target})
	}
	line := "cat"
	for _, target := range targets {
		line += " " + target + "/f"
	}
	out, code, err := run(t, s, line+"; echo; ls -d /usr/bin /etc/passwd /proc/self/ns /dev/null; echo new >/berth-exec-test/g")
	if err != nil || code != 0 {
		t.Fatalf("code %d, err %v: %s", code, err, out)
	}
	if want := strings.Repeat("hello", len(targets)) + "\n/dev/null\n/etc/passwd\n/proc/self/ns\n/usr/bin"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if _, err := os.Stat(filepath.Join(src, "g")); err != nil {
		t.Errorf("what was written at the mount path is not in the volume: %v", err)
	}
	for _, target := range targets[:4] {
		if _, err := os.Lstat(target); err == nil {
			t.Errorf("%s was left on the host", target)
		}
	}
}

func TestExitCodesAndStdio(t *testing.T) {
	for _, c := range []struct {
		name, line, out string
		code            int
	}{
		{"success", "true", "", 0},
		{"own code", "exit 7", "", 7},
		{"signal", "kill -9 $$", "", 137},
		{"stdin", "cat", "from stdin", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code, err := run(t, Spec{}, c.line)
			if err != nil || code != c.code || out != c.out {
				t.Errorf("got %q, code %d, err %v", out, code, err)
			}
		})
	}
	code, err := Run(t.Context(), Spec{Env: []string{"PATH=/bin"}}, []string{"no-such-program"}, Stdio{})
	if code != ExitNotFound || err == nil {
		t.Errorf("missing program: code %d, err %v", code, err)
	}
}

func TestReadOnlyAndSubPath(t *testing.T) {
	src := volume(t, map[string]string{"a/f": "inner", "f": "outer"})
	if err := os.Symlink("a", filepath.Join(src, "inside")); err != nil {
		t.Fatal(err)
	}
	out, code, err := run(t, Spec{Mounts: []Mount{
		{Volume: "v", Source: src, Target: "/bx/made", SubPath: "made/by/exec"},
		{Volume: "v", Source: src, Target: "/bx/ro", ReadOnly: true},
		{Volume: "v", Source: src, Target: "/bx/rw"},
		{Volume: "v", Source: src, Target: "/bx/sub", SubPath: "a"},
		{Volume: "v", Source: src, Target: "/bx/subfile", SubPath: "inside/f"},
	}}, "cat /bx/ro/f /bx/sub/f /bx/subfile; touch /bx/ro/x 2>/dev/null || echo refused; touch /bx/rw/x /bx/made/z")
	if err != nil || code != 0 || out != "outerinnerinnerrefused" {
		t.Errorf("got %q, code %d, err %v", out, code, err)
	}
	if _, err := os.Stat(filepath.Join(src, "made/by/exec/z")); err != nil {
		t.Error(err)
	}
}

// A volume's owner puts links into it that lead out: they must not be followed, whether relative, absolute or on the way.
func TestSubPathCannotLeaveTheVolume(t *testing.T) {
	secret := volume(t, map[string]string{"secret": "x"})
	src := volume(t, map[string]string{"d/f": ""})
	for name, target := range map[string]string{"abs": secret, "rel": "../" + filepath.Base(secret), "d/up": "../../.."} {
		if err := os.Symlink(target, filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"abs", "rel", "d/up", "abs/secret", "d/up/etc", "abs/new/dir"} {
		out, code, err := run(t, Spec{Mounts: []Mount{{Volume: "v", Source: src, Target: "/bx", SubPath: sub}}}, "ls /bx")
		if err == nil || code != ExitSetup {
			t.Errorf("subPath %s: code %d, printed %q", sub, code, out)
		}
	}
	if _, err := os.Lstat(filepath.Join(secret, "new")); err == nil {
		t.Error("a directory was made outside the volume")
	}
}

// One volume inside another: the mount point is made in the outer volume, never through a link of it.
func TestVolumeInsideVolume(t *testing.T) {
	outer, inner := volume(t, map[string]string{"o": "outer"}), volume(t, map[string]string{"i": "inner"})
	s := Spec{Mounts: []Mount{
		{Volume: "o", Source: outer, Target: "/bx/data"},
		{Volume: "i", Source: inner, Target: "/bx/data/sub/dir"},
		{Volume: "z", Source: inner, Target: "/by"},
	}}
	out, code, err := run(t, s, "cat /bx/data/o /bx/data/sub/dir/i /by/i")
	if err != nil || code != 0 || out != "outerinnerinner" {
		t.Errorf("got %q, code %d, err %v", out, code, err)
	}
	if err := os.RemoveAll(filepath.Join(outer, "sub")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", filepath.Join(outer, "sub")); err != nil {
		t.Fatal(err)
	}
	if _, code, err := run(t, s, "true"); err == nil || code != ExitSetup {
		t.Errorf("a link of the outer volume was followed: code %d, err %v", code, err)
	}
}

func TestDeviceAndIdentity(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "dev")
	if err := os.Symlink("/dev/zero", link); err != nil {
		t.Fatal(err)
	}
	user, group := int64(65534), int64(4242)
	out, code, err := run(t, Spec{
		Mounts: []Mount{{Volume: "b", Source: link, Target: "/dev/berth-x", Device: true}},
		User:   &user, Group: &group, Groups: []int64{777},
	}, "head -c 3 /dev/berth-x | od -An -tx1; id -u; id -g; id -G; test -c /dev/null && echo devices")
	if err != nil || code != 0 || strings.Join(strings.Fields(out), " ") != "00 00 00 65534 4242 4242 777 devices" {
		t.Errorf("got %q, code %d, err %v", out, code, err)
	}
}

// A pod is deleted while a command runs with its volumes: the command and its children die, and the filesystem can be unmounted.
func TestKillAllEndsTheCommand(t *testing.T) {
	data := t.TempDir()
	pod := types.UID("uid-1")
	if err := os.MkdirAll(filepath.Join(data, "pods", string(pod)), 0o755); err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	if err := unix.Mount("tmpfs", src, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(src, unix.MNT_DETACH) })
	s := Spec{Mounts: []Mount{{Volume: "v", Source: src, Target: "/bx"}}, RunDir: filepath.Join(data, "pods", string(pod), "plugins", runDirName)}
	done := make(chan int)
	go func() {
		_, code, _ := run(t, s, "touch /bx/started; sleep 600 & wait")
		done <- code
	}()
	for i := 0; ; i++ {
		if _, err := os.Stat(filepath.Join(src, "started")); err == nil {
			break
		}
		if i > 1000 {
			t.Fatal("the command did not start")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := KillAll(data, pod); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-done:
		if code != 137 {
			t.Errorf("code %d, want 137", code)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the command still runs")
	}
	if err := unix.Unmount(src, 0); err != nil {
		t.Errorf("unmount after KillAll: %v", err)
	}
}

// What a command leaves running in the background ends with it: it would keep the volume's filesystem busy.
func TestTheEndOfTheCommandEndsWhatItLeaves(t *testing.T) {
	src := t.TempDir()
	if err := unix.Mount("tmpfs", src, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(src, unix.MNT_DETACH) })
	s := Spec{Mounts: []Mount{{Volume: "v", Source: src, Target: "/bx"}}}
	out, code, err := run(t, s, "sleep 600 >/dev/null 2>&1 </dev/null & echo $!")
	if code != 0 || err != nil {
		t.Fatalf("code %d, %v", code, err)
	}
	left := filepath.Join("/proc", strings.TrimSpace(out))
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		state, err := os.ReadFile(filepath.Join(left, "stat"))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s still runs", strings.TrimSpace(out))
		}
	}
}

// started waits until the command has left a file.
func started(t *testing.T, file string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the command did not start")
		}
	}
}

// podOf makes a pod's directory and a tmpfs as its volume.
func podOf(t *testing.T, data string, pod types.UID) (volume string) {
	t.Helper()
	volume = filepath.Join(data, "pods", string(pod), "volumes", "v")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", volume, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(volume, unix.MNT_DETACH) })
	return volume
}

// killable starts `berth exec` as a process of its own, whose command leaves a session of its own behind, and returns it with that
// session's process.
func killable(t *testing.T, data, volume string, user bool) (exec *osexec.Cmd, left string) {
	t.Helper()
	exec = osexec.Command("/proc/self/exe", "-test.run=^TestExecThatIsKilled$")
	exec.Env = append(os.Environ(), "BERTH_TEST_DATA="+data, "BERTH_TEST_VOLUME="+volume)
	if user {
		exec.Env = append(exec.Env, "BERTH_TEST_USER=1")
	}
	if err := exec.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Process.Kill(); _ = exec.Wait() })
	started(t, filepath.Join(volume, "started"))
	text, err := os.ReadFile(filepath.Join(volume, "started"))
	if err != nil {
		t.Fatal(err)
	}
	left = filepath.Join("/proc", strings.TrimSpace(string(text)))
	if _, err := os.Stat(left); err != nil {
		t.Fatal(err)
	}
	return exec, left
}

// ended waits until a process has ended.
func ended(t *testing.T, proc string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		state, err := os.ReadFile(filepath.Join(proc, "stat"))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s still runs: %s", proc, state)
		}
	}
}

// `berth exec` itself is killed with -9: what its command had started ends with it, also what has left its session, or is
// another user's, whom no death signal reaches.
func TestAKilledExecLeavesNothing(t *testing.T) {
	for name, user := range map[string]bool{"as root": false, "as the container's user": true} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			exec, left := killable(t, data, podOf(t, data, "uid-left"), user)
			_ = exec.Process.Kill()
			_ = exec.Wait()
			ended(t, left)
		})
	}
}

// `berth exec` and its helper are killed with -9: what its command had started is found by the mark of its namespace.
func TestKillAllFindsWhatAKilledExecLeft(t *testing.T) {
	data, pod := t.TempDir(), types.UID("uid-left")
	exec, left := killable(t, data, podOf(t, data, pod), false)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", exec.Process.Pid, exec.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", exec.Process.Pid))
	for _, file := range tasks {
		if text, err := os.ReadFile(file); err == nil {
			children = append(children, text...)
		}
	}
	helpers := strings.Fields(string(children))
	if len(helpers) == 0 {
		t.Fatal("no helper")
	}
	helper, err := strconv.Atoi(helpers[0])
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(helper, unix.SIGSTOP) // so that it cannot see the first death
	_ = exec.Process.Kill()
	_ = exec.Wait()
	_ = unix.Kill(helper, unix.SIGKILL)
	if _, err := os.Stat(left); err != nil {
		t.Fatalf("nothing was left to be found: %v", err)
	}
	if err := KillAll(data, pod); err != nil {
		t.Fatal(err)
	}
	ended(t, left)
	s := Spec{RunDir: runDir(data, pod), DataDir: data}
	if _, code, err := run(t, s, "true"); !(err != nil && strings.Contains(err.Error(), "being unmounted")) || code != ExitSetup {
		t.Errorf("a command began after KillAll: code %d, %v", code, err)
	}
	if err := Reopen(data, pod); err != nil {
		t.Fatal(err)
	}
	if _, code, err := run(t, s, "true"); err != nil || code != 0 {
		t.Errorf("after Reopen: code %d, %v", code, err)
	}
}

// TestExecThatIsKilled is the `berth exec` of the tests above.
func TestExecThatIsKilled(t *testing.T) {
	data, volume := os.Getenv("BERTH_TEST_DATA"), os.Getenv("BERTH_TEST_VOLUME")
	if data == "" {
		return
	}
	s := Spec{Mounts: []Mount{{Volume: "v", Source: volume, Target: "/bx"}}, RunDir: runDir(data, "uid-left"), DataDir: data}
	if os.Getenv("BERTH_TEST_USER") != "" {
		nobody := int64(65534)
		s.User, s.Group, s.Groups = &nobody, &nobody, []int64{65534}
		if err := os.Chmod(volume, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	_, _, _ = run(t, s, "setsid sh -c 'echo $$ >/bx/new; mv /bx/new /bx/started; exec sleep 600' >/dev/null 2>&1 </dev/null & sleep 600")
}

// A command keeps the volumes of its own pod and of no other: those can be unmounted for good while it runs.
func TestTheNamespaceLeavesOtherVolumesBehind(t *testing.T) {
	data := t.TempDir()
	mine, other := podOf(t, data, "uid-mine"), podOf(t, data, "uid-other")
	out, code, err := run(t, Spec{
		Mounts: []Mount{{Volume: "v", Source: mine, Target: "/bx"}}, RunDir: runDir(data, "uid-mine"), DataDir: data,
	}, "cat /proc/self/mountinfo")
	if err != nil || code != 0 {
		t.Fatalf("code %d, %v: %s", code, err, out)
	}
	if strings.Contains(out, other) || strings.Contains(out, mine) || !strings.Contains(out, " /bx ") {
		t.Errorf("the command sees\n%s", out)
	}
}

// The helper is root until it has become the container's user: what a pod writes into its environment is not the helper's.
func TestTheHelperDoesNotRunInThePodsEnvironment(t *testing.T) {
	s := Spec{Env: []string{"PATH=/usr/bin:/bin", "GODEBUG=inittrace=1", "WHAT=first", "WHAT=last"}}
	out, code, err := run(t, s, "echo $GODEBUG $WHAT")
	if err != nil || code != 0 || out != "inittrace=1 last" {
		t.Errorf("%q, %d, %v", out, code, err)
	}
}

// A directory that is made for a subPath is as its parent is, whatever the umask of the shell that `berth exec` was typed in:
// the pod's group must be able to write there.
func TestASubPathIsMadeLikeItsParent(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	src := volume(t, nil)
	if err := os.Chmod(src, 0o775|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	s := Spec{Mounts: []Mount{{Volume: "v", Source: src, SubPath: "new/deep", Target: "/berth-exec-test"}}}
	out, _, err := run(t, s, "umask")
	if err != nil || out != "0077" {
		t.Errorf("%q, %v", out, err)
	}
	for _, dir := range []string{"new", "new/deep"} {
		info, err := os.Stat(filepath.Join(src, dir))
		if err != nil || info.Mode().Perm() != 0o775 || info.Mode()&os.ModeSetgid == 0 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}
