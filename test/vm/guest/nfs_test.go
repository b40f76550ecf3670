//go:build vmguest

package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var nfsShare = map[string]string{"server": "127.0.0.1", "share": "/vol"}

// Every call-out of the driver in its order, each twice.
func TestNFSLife(t *testing.T) {
	started(t, nfsServer)
	dir := podDir(t, "nfs")
	if c := twice(t, "nfs", "init").Capabilities; c["attach"] || !c["fsGroup"] {
		t.Errorf("capabilities %v", c)
	}
	if a := twice(t, "nfs", "getvolumename", options(nfsShare)); a.VolumeName != "127.0.0.1%3A%2Fvol" {
		t.Errorf("volume name %q", a.VolumeName)
	}
	for _, word := range []string{"attach", "waitforattach", "isattached", "detach", "mountdevice", "unmountdevice", "expandvolume", "expandfs", "selfdestruct"} {
		args := map[string][]string{
			"attach": {options(nfsShare), "n"}, "waitforattach": {"", options(nfsShare)}, "isattached": {options(nfsShare), "n"}, "detach": {"v", "n"},
			"mountdevice": {deviceDir("v"), "", options(nfsShare)}, "unmountdevice": {deviceDir("v")},
			"expandvolume": {options(nfsShare), deviceDir("v"), "2", "1"}, "expandfs": {options(nfsShare), "", deviceDir("v"), "2", "1"},
		}[word]
		if a := call(t, "nfs", append([]string{word}, args...)...); a.Status != "Not supported" {
			t.Errorf("%s: %+v", word, a)
		}
	}
	succeeds(t, "nfs", "unmount", dir) // never mounted
	twice(t, "nfs", "mount", dir, options(nfsShare))
	isMounted(t, dir, "127.0.0.1:/vol", "nfs4", "rw", "nosuid", "nodev")
	write(t, filepath.Join(dir, "file"), "through the mount")
	holds(t, filepath.Join(exported, "vol/file"), "through the mount")
	if err := os.Chown(filepath.Join(dir, "file"), -1, 4242); err != nil { // as the host does for fsGroup
		t.Error(err)
	}
	twice(t, "nfs", "unmount", dir)
	notMounted(t, dir)
	succeeds(t, "nfs", "unmount", filepath.Join(filepath.Dir(dir), "never-made"))
}

// A server in userspace is served as the kernel's is: what is written arrives, a directory of the share is one, what is not there is refused, and
// an unmount leaves nothing.
func TestNFSOfGanesha(t *testing.T) {
	started(t, ganeshaServer)
	share := with(nfsShare, "mountOptions", "vers=4.1,port="+ganeshaPort)
	dir, below := podDir(t, "nfs"), podDir(t, "nfs")+"-below"
	twice(t, "nfs", "mount", dir, options(share))
	isMounted(t, dir, "127.0.0.1:/vol", "nfs4", "rw", "nosuid", "nodev")
	write(t, filepath.Join(dir, "a/b/file"), "through the mount")
	holds(t, "/srv/ganesha/a/b/file", "through the mount")
	twice(t, "nfs", "mount", below, options(with(share, "subPath", "a/b", "kubernetes.io/readwrite", "ro")))
	isMounted(t, below, "127.0.0.1:/vol/a/b", "nfs4", "ro")
	holds(t, filepath.Join(below, "file"), "through the mount")
	if err := os.WriteFile(filepath.Join(below, "file"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("the reader wrote: %v", err)
	}
	for _, at := range []string{below, dir} {
		if a := twice(t, "nfs", "unmount", at); a.Warning != "" {
			t.Errorf("warned: %s", a.Warning)
		}
		notMounted(t, at)
	}
	fails(t, "", "nfs", "mount", dir, options(with(share, "share", "/none")))
	fails(t, "", "nfs", "mount", dir, options(with(share, "subPath", "a/none")))
	notMounted(t, dir)
}

func TestNFSWays(t *testing.T) {
	started(t, nfsServer)
	for name, c := range map[string]struct {
		options map[string]string
		source  string
		mount   []string
	}{
		"share without its slash":     {with(nfsShare, "share", "vol"), "127.0.0.1:/vol", nil},
		"read-only by the host":       {with(nfsShare, "kubernetes.io/readwrite", "ro"), "127.0.0.1:/vol", []string{"ro"}},
		"read-only by its options":    {with(nfsShare, "mountOptions", "ro"), "127.0.0.1:/vol", []string{"ro"}},
		"the host's word wins":        {with(nfsShare, "mountOptions", "rw", "kubernetes.io/readwrite", "ro"), "127.0.0.1:/vol", []string{"ro"}},
		"a version, and noatime":      {with(nfsShare, "mountOptions", "nfsvers=4.1, noatime,,_netdev"), "127.0.0.1:/vol", []string{"vers=4.1", "rw"}},
		"a directory below":           {with(nfsShare, "subPath", "a/b"), "127.0.0.1:/vol/a/b", []string{"rw"}},
		"a directory below, fixed":    {with(nfsShare, "subPath", "a/b", "kubernetes.io/readwrite", "ro"), "127.0.0.1:/vol/a/b", []string{"ro", "nosuid"}},
		"an option that is not known": {with(nfsShare, "kubernetes.io/later", "x", "kubernetes.io/fsType", "nfs"), "127.0.0.1:/vol", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t, "nfs")
			twice(t, "nfs", "mount", dir, options(c.options))
			isMounted(t, dir, c.source, "nfs4", c.mount...)
			twice(t, "nfs", "unmount", dir)
			notMounted(t, dir)
		})
	}
}

func TestNFSRefuses(t *testing.T) {
	started(t, nfsServer)
	for name, c := range map[string]struct {
		options map[string]string
		words   string
	}{
		"a link below the share":        {with(nfsShare, "subPath", "link/b"), "symbolic link"},
		"a link out of the share":       {with(nfsShare, "subPath", "out"), "symbolic link"},
		"a directory that is not there": {with(nfsShare, "subPath", "a/c"), "no directory"},
		"a share that is not there":     {with(nfsShare, "share", "/nothing"), "mount.nfs"},
		"a server that is not there":    {with(nfsShare, "mountOptions", "port=9"), "Connection refused"},
		"a server without a route":      {with(nfsShare, "server", "192.0.2.1"), "mount.nfs"},
		"a name that nobody has":        {with(nfsShare, "server", "nobody.invalid"), "mount.nfs"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t, "nfs")
			a := fails(t, c.words, "nfs", "mount", dir, options(c.options))
			notMounted(t, dir)
			t.Logf("after %s: %s", a.took.Round(time.Millisecond), a.Message)
			succeeds(t, "nfs", "unmount", dir)
		})
	}
}

// What somebody else has mounted at the directory is neither covered nor taken for ours.
func TestNFSOccupied(t *testing.T) {
	started(t, nfsServer)
	dir := podDir(t, "nfs")
	run(t, "mount", "-t", "tmpfs", "somebody", dir)
	fails(t, "something else is mounted there", "nfs", "mount", dir, options(nfsShare))
	isMounted(t, dir, "somebody", "tmpfs")
	run(t, "umount", dir)
	succeeds(t, "nfs", "mount", dir, options(nfsShare))
	fails(t, "something else is mounted there", "nfs", "mount", dir, options(with(nfsShare, "subPath", "a/b")))
	fails(t, "read-only", "nfs", "mount", dir, options(with(nfsShare, "kubernetes.io/readwrite", "ro")))
	cmd := exec.Command("sleep", "600")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fails(t, "in use by process", "nfs", "unmount", dir)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	succeeds(t, "nfs", "unmount", dir)
}

// Two pods have one share, one of them read-only: neither takes the other's access away, whichever comes first.
func TestAccessIsEachMountsOwn(t *testing.T) {
	started(t, nfsServer)
	started(t, smbServer)
	for driver, share := range map[string]map[string]string{"nfs": nfsShare, "cifs": smbShare} {
		for name, order := range map[string][]string{"the reader first": {"ro", "rw"}, "the writer first": {"rw", "ro"}} {
			t.Run(driver+", "+name, func(t *testing.T) {
				dirs := map[string]string{"ro": podDir(t, driver), "rw": podDir(t, driver) + "-rw"}
				for _, access := range order {
					succeeds(t, driver, "mount", dirs[access], options(with(share, "kubernetes.io/readwrite", access)))
				}
				write(t, filepath.Join(dirs["rw"], "shared"), "written")
				holds(t, filepath.Join(dirs["ro"], "shared"), "written")
				if err := os.WriteFile(filepath.Join(dirs["ro"], "shared"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
					t.Errorf("the reader wrote: %v", err)
				}
				for _, access := range order {
					succeeds(t, driver, "unmount", dirs[access])
					notMounted(t, dirs[access])
				}
			})
		}
	}
}

// The directory, or one on its way, is a link: refused by name, what it leads to stays as it is.
func TestLinkInTheDirectory(t *testing.T) {
	started(t, nfsServer)
	dir := podDir(t, "nfs")
	victim := t.TempDir()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{dir, filepath.Dir(dir)} {
		_ = os.RemoveAll(link)
		if err := os.Symlink(victim, link); err != nil {
			t.Fatal(err)
		}
		fails(t, "symbolic link", "nfs", "mount", dir, options(nfsShare))
		fails(t, "symbolic link", "nfs", "unmount", dir)
		notMounted(t, victim)
	}
}

func TestNFSKilled(t *testing.T) {
	started(t, nfsServer)
	dir := podDir(t, "nfs")
	gone := func(t *testing.T) {
		succeeds(t, "nfs", "unmount", dir)
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	there := func(t *testing.T) { isMounted(t, dir, "127.0.0.1:/vol/a/b", "nfs4", "ro") }
	share := options(with(nfsShare, "subPath", "a/b", "kubernetes.io/readwrite", "ro"))
	survives(t, gone, there, "nfs", "mount", dir, share)
	survives(t, func(t *testing.T) { succeeds(t, "nfs", "mount", dir, share) }, func(t *testing.T) { notMounted(t, dir) }, "nfs", "unmount", dir)
}

// A server that accepts and says nothing: the call-out ends by itself, and on a signal at once, with an answer.
func TestNFSSilentServer(t *testing.T) {
	started(t, nfsServer)
	silent := with(nfsShare, "mountOptions", "vers=4.1,port="+silentServer(t))
	t.Run("bounded", func(t *testing.T) {
		t.Parallel()
		dir := podDir(t, "nfs")
		a := fails(t, "", "nfs", "mount", dir, options(silent))
		if a.took > 70*time.Second {
			t.Errorf("took %s", a.took)
		}
		t.Logf("after %s: %s", a.took.Round(time.Millisecond), a.Message)
		notMounted(t, dir)
		succeeds(t, "nfs", "mount", dir, options(nfsShare))
		succeeds(t, "nfs", "unmount", dir)
	})
	t.Run("signal", func(t *testing.T) {
		t.Parallel()
		dir := podDir(t, "nfs")
		cmd := exec.Command(filepath.Join(plugins, "berth~nfs/nfs"), "mount", dir, options(silent))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "mount.nfs to run", func() bool { return len(childrenOf(cmd.Process.Pid)) > 0 })
		began := time.Now()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		var a answer
		if json.Unmarshal(out.Bytes(), &a) != nil || a.Status != "Failure" || !strings.Contains(a.Message, "terminated") || err == nil {
			t.Errorf("%s, %v", out.String(), err)
		}
		t.Logf("after %s: %s", time.Since(began).Round(time.Millisecond), a.Message)
		notMounted(t, dir)
	})
}

// The server goes silent while its share is mounted and written to: the unmount ends, the directory is free.
func TestNFSServerGoesSilent(t *testing.T) {
	started(t, nfsServer)
	dir := podDir(t, "nfs")
	port, cut := proxy(t, "127.0.0.1:2049")
	silent := options(with(nfsShare, "mountOptions", "vers=4.1,nosharecache,port="+port))
	succeeds(t, "nfs", "mount", dir, silent)
	write(t, filepath.Join(dir, "before"), "sent")
	cut()
	began := time.Now()
	twice(t, "nfs", "mount", dir, silent) // it asks the mount table, not the server
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a second mount took %s", took)
	}
	a := succeeds(t, "nfs", "unmount", dir)
	t.Logf("after %s", a.took.Round(time.Millisecond))
	if a.took > 60*time.Second {
		t.Errorf("took %s", a.took)
	}
	notMounted(t, dir)
	if !strings.Contains(a.Warning, "the unmount was forced: what had been written and not yet sent to it is lost") || a.Message != a.Warning {
		t.Errorf("warning %q, message %q", a.Warning, a.Message)
	}
	if a := succeeds(t, "nfs", "unmount", dir); a.Warning != "" {
		t.Errorf("warned of nothing: %q", a.Warning)
	}
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func childrenOf(pid int) []string {
	tasks, _ := filepath.Glob(filepath.Join("/proc", itoa(pid), "task/*/children"))
	var all []string
	for _, f := range tasks {
		text, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}
