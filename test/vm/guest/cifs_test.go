//go:build vmguest

package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

var smbShare = map[string]string{
	"source": "//127.0.0.1/vol", "kubernetes.io/secret/username": secret(smbUser), "kubernetes.io/secret/password": secret(smbPassword),
}

func withoutSource(pairs ...string) map[string]string {
	o := with(smbShare, pairs...)
	delete(o, "source")
	return o
}

// Every call-out of the driver in its order, each twice; the secret is seen nowhere meanwhile.
func TestCIFSLife(t *testing.T) {
	started(t, smbServer)
	dir := podDir(t, "cifs")
	if c := twice(t, "cifs", "init").Capabilities; c["attach"] || c["fsGroup"] {
		t.Errorf("capabilities %v", c)
	}
	if a := twice(t, "cifs", "getvolumename", options(map[string]string{"source": `\\127.0.0.1\vol`})); a.VolumeName != "%2F%2F127.0.0.1%2Fvol%2F" {
		t.Errorf("volume name %q", a.VolumeName)
	}
	succeeds(t, "cifs", "unmount", dir) // never mounted
	seen := watchSecret(t)
	twice(t, "cifs", "mount", dir, options(smbShare))
	seen()
	isMounted(t, dir, "//127.0.0.1/vol", "cifs", "rw", "nosuid", "nodev", "username="+smbUser)
	write(t, filepath.Join(dir, "file"), "through the mount")
	holds(t, filepath.Join(shared, "file"), "through the mount")
	twice(t, "cifs", "unmount", dir)
	notMounted(t, dir)
}

// watchSecret looks at every process's command line and environment until the function that it answers is called, which asserts that
// mount.cifs was seen and the secret was not. The driver's own arguments are the protocol's, and blanked when it starts: they are
// looked at while it runs mount.cifs.
func watchSecret(t *testing.T) (done func()) {
	var stop atomic.Bool
	ended := make(chan struct{})
	saw := 0
	var leaks []string
	look := func(pid, file string) {
		text, _ := os.ReadFile(filepath.Join("/proc", pid, file))
		if strings.Contains(string(text), smbPassword) || strings.Contains(string(text), secret(smbPassword)) || strings.Contains(string(text), secret(smbUser)) {
			leaks = append(leaks, pid+" "+file)
		}
	}
	go func() {
		defer close(ended)
		for !stop.Load() {
			pids, _ := filepath.Glob("/proc/[0-9]*")
			for _, p := range pids {
				pid := filepath.Base(p)
				if comm, _ := os.ReadFile(p + "/comm"); strings.TrimSpace(string(comm)) != "mount.cifs" {
					continue
				}
				saw++
				look(pid, "cmdline")
				look(pid, "environ")
				stat, _ := os.ReadFile(p + "/stat")
				if _, rest, ok := strings.Cut(string(stat), ") "); ok && len(strings.Fields(rest)) > 1 {
					look(strings.Fields(rest)[1], "cmdline") // the driver
				}
			}
		}
	}()
	return func() {
		stop.Store(true)
		<-ended
		if saw == 0 {
			t.Error("mount.cifs was never seen: the watch proves nothing")
		}
		if len(leaks) > 0 {
			t.Errorf("the secret stood in %v", leaks)
		}
		t.Logf("mount.cifs was seen %d times", saw)
	}
}

func TestCIFSWays(t *testing.T) {
	started(t, smbServer)
	for name, c := range map[string]struct {
		options map[string]string
		mount   []string
	}{
		"networkPath":          {withoutSource("networkPath", "//127.0.0.1/vol"), nil},
		"backslashes":          {withoutSource("networkPath", `\\127.0.0.1\vol`), nil},
		"server and share":     {withoutSource("server", "127.0.0.1", "share", "/vol"), nil},
		"read-only":            {with(smbShare, "kubernetes.io/readwrite", "ro"), []string{"ro"}},
		"options, fsType cifs": {with(smbShare, "mountOptions", "vers=3.1.1,uid=7,file_mode=0600", "kubernetes.io/fsType", "cifs"), []string{"uid=7", "file_mode=0600"}},
		"a group":              {with(smbShare, "kubernetes.io/mounterArgs.FsGroup", "4242"), []string{"gid=4242", "forcegid", "file_mode=0660"}},
		"a group of its own":   {with(smbShare, "mountOptions", "gid=9", "kubernetes.io/mounterArgs.FsGroup", "4242"), []string{"gid=9"}},
		"a domain":             {with(smbShare, "kubernetes.io/secret/domain", secret("T")), []string{"domain=T"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t, "cifs")
			twice(t, "cifs", "mount", dir, options(c.options))
			isMounted(t, dir, "//127.0.0.1/vol", "cifs", c.mount...)
			if name == "a group" {
				var st syscall.Stat_t
				if err := syscall.Stat(dir, &st); err != nil || st.Gid != 4242 || st.Mode&0o7777 != 0o2770 {
					t.Errorf("the directory: group %d, mode %o, %v", st.Gid, st.Mode&0o7777, err)
				}
			}
			twice(t, "cifs", "unmount", dir)
			notMounted(t, dir)
		})
	}
}

// A directory of the share, named by subPath and as part of the source.
func TestCIFSDirectories(t *testing.T) {
	started(t, smbServer)
	write(t, filepath.Join(shared, "a/b/deep"), "below")
	for name, o := range map[string]map[string]string{
		"subPath":                 with(smbShare, "subPath", "a/b"),
		"in the source":           with(smbShare, "source", "//127.0.0.1/vol/a/b"),
		"in the source and below": with(smbShare, "source", "//127.0.0.1/vol/a", "subPath", "b"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t, "cifs")
			twice(t, "cifs", "mount", dir, options(o))
			holds(t, filepath.Join(dir, "deep"), "below")
			t.Logf("%v", mountLine(t, dir)[:3])
			twice(t, "cifs", "unmount", dir)
			notMounted(t, dir)
		})
	}
}

func TestCIFSRefuses(t *testing.T) {
	started(t, smbServer)
	for name, c := range map[string]struct {
		options map[string]string
		words   string
	}{
		"a wrong password":         {with(smbShare, "kubernetes.io/secret/password", secret("wrong-pass-word")), "Permission denied"},
		"no secret":                {map[string]string{"source": "//127.0.0.1/vol"}, "username"},
		"a share that isn't there": {with(smbShare, "source", "//127.0.0.1/nothing"), "No such file"},
		"a server that isn't":      {with(smbShare, "mountOptions", "port=9"), "mount.cifs"},
		"a directory that isn't":   {with(smbShare, "subPath", "a/c"), "no directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t, "cifs")
			a := fails(t, c.words, "cifs", "mount", dir, options(c.options))
			if strings.Contains(a.Message, smbPassword) || strings.Contains(a.Message, "wrong-pass-word") {
				t.Errorf("the message has the password: %s", a.Message)
			}
			t.Logf("after %s: %s", a.took.Round(time.Millisecond), a.Message)
			notMounted(t, dir)
		})
	}
}

func TestCIFSSilentServer(t *testing.T) {
	started(t, smbServer)
	dir := podDir(t, "cifs")
	a := fails(t, "", "cifs", "mount", dir, options(with(smbShare, "mountOptions", "port="+silentServer(t))))
	t.Logf("after %s: %s", a.took.Round(time.Millisecond), a.Message)
	if a.took > 100*time.Second {
		t.Errorf("took %s", a.took)
	}
	notMounted(t, dir)
}

func TestCIFSKilled(t *testing.T) {
	started(t, smbServer)
	dir := podDir(t, "cifs")
	survives(t, func(t *testing.T) { succeeds(t, "cifs", "unmount", dir) },
		func(t *testing.T) { isMounted(t, dir, "//127.0.0.1/vol", "cifs", "ro") },
		"cifs", "mount", dir, options(with(smbShare, "kubernetes.io/readwrite", "ro")))
	succeeds(t, "cifs", "unmount", dir)
}
