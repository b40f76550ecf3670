package install

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth.io/berth/internal/boundary"
)

// programs are the real one in two versions.
var programs = sync.OnceValues(func() ([2]string, error) {
	var out [2]string
	dir, err := os.MkdirTemp("", "berth-install")
	if err != nil {
		return out, err
	}
	for i, version := range []string{"v1", "v2"} {
		out[i] = filepath.Join(dir, version)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.Version="+version, "-o", out[i], programPath)
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as scripts/build.sh
		said, err := build.CombinedOutput()
		if err != nil {
			return out, errors.New(string(said))
		}
	}
	return out, nil
})

func TestMain(m *testing.M) {
	if dir := os.Getenv("BERTH_INSTALL_INTO"); dir != "" { // the process that TestKilled kills
		_, err := Install(context.Background(), os.Getenv("BERTH_INSTALL"), Options{Dir: dir, Vendor: "k8s", Drivers: []string{"nfs"}})
		if err == nil {
			_, err = Uninstall(context.Background(), Options{Dir: dir, Vendor: "k8s"})
		}
		if err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	code := m.Run()
	if p, err := programs(); err == nil {
		_ = os.RemoveAll(filepath.Dir(p[0]))
	}
	os.Exit(code)
}

func two(t *testing.T) (v1, v2 string) {
	t.Helper()
	p, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

// From nothing to a newer version and back to nothing; a second time changes nothing.
func TestLife(t *testing.T) {
	v1, v2 := two(t)
	dir := filepath.Join(t.TempDir(), "volume", "exec")
	if all, err := List(t.Context(), dir, ""); err != nil || len(all) != 0 {
		t.Errorf("%v %v", all, err)
	}
	first, err := Install(t.Context(), v1, Options{Dir: dir, Vendor: "ours"})
	if err != nil || len(first) != 4 {
		t.Fatalf("%+v %v", first, err)
	}
	again, err := Install(t.Context(), v1, Options{Dir: dir, Vendor: "ours"})
	if err != nil || slices.ContainsFunc(again, func(c Change) bool { return !c.Same }) {
		t.Errorf("%+v %v", again, err)
	}
	before, err := os.Stat(filepath.Join(dir, "ours~nfs/nfs"))
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatal(before, err)
	}
	newer, err := Install(t.Context(), v2, Options{Dir: dir, Vendor: "ours", Drivers: []string{"nfs"}})
	if err != nil || newer[0].Before != "v1" || newer[0].Version != "v2" || newer[0].Same {
		t.Errorf("%+v %v", newer, err)
	}
	if after, err := os.Stat(filepath.Join(dir, "ours~nfs/nfs")); err != nil || os.SameFile(before, after) {
		t.Errorf("it was written into the running program: %v", err)
	}
	if _, err := Install(t.Context(), v1, Options{Dir: dir, Vendor: "k8s", Drivers: []string{"cifs"}}); err != nil {
		t.Error(err)
	}
	all, err := List(t.Context(), dir, "")
	var names []string
	for _, i := range all {
		names = append(names, i.Vendor+"/"+i.Driver+" "+i.Version)
	}
	if want := "k8s/cifs v1,ours/block v1,ours/cifs v1,ours/lvm v1,ours/nfs v2"; err != nil || strings.Join(names, ",") != want {
		t.Errorf("%q, %v; want %s", names, err, want)
	}
	out, err := exec.Command(filepath.Join(dir, "k8s~cifs/cifs"), "init").Output()
	if err != nil || !strings.Contains(string(out), `"fsGroup":false`) {
		t.Errorf("%s %v", out, err)
	}
	// What docs/flexvolume-block.md tells users to put beside it goes, too.
	if err := os.WriteFile(filepath.Join(dir, "ours~block/.berth-socket"), []byte("/x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{4, 0} {
		if gone, err := Uninstall(t.Context(), Options{Dir: dir, Vendor: "ours"}); err != nil || len(gone) != want {
			t.Errorf("%+v %v, want %d", gone, err, want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left %v", entries)
	}
}

// What is not ours is neither replaced nor removed nor executed.
func TestForeign(t *testing.T) {
	v1, _ := two(t)
	dir := t.TempDir()
	path, ran := filepath.Join(dir, "k8s~nfs/nfs"), filepath.Join(dir, "ran")
	theirs := "#!/bin/sh\ntouch " + ran + "\necho '{\"status\":\"Success\",\"message\":\"v9\"}'\n"
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(theirs), 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), v1, Options{Dir: dir, Vendor: "k8s", Drivers: []string{"nfs"}}); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	if _, err := Uninstall(t.Context(), Options{Dir: dir, Vendor: "k8s", Drivers: []string{"nfs"}}); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	if gone, err := Uninstall(t.Context(), Options{Dir: dir, Vendor: "k8s"}); err != nil || len(gone) != 0 {
		t.Errorf("%v %v", gone, err)
	}
	all, err := List(t.Context(), dir, "")
	if err != nil || len(all) != 1 || all[0].Ours || all[0].Version != "" {
		t.Errorf("%+v %v", all, err)
	}
	if _, err := Install(t.Context(), path, Options{Dir: dir, Vendor: "x"}); err == nil || !strings.Contains(err.Error(), "not the drivers' program") {
		t.Error(err)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("it was executed")
	}
	if b, _ := os.ReadFile(path); string(b) != theirs {
		t.Error("it was changed")
	}
	if c, err := Install(t.Context(), v1, Options{Dir: dir, Vendor: "k8s", Drivers: []string{"nfs"}, Force: true}); err != nil || c[0].Version != "v1" {
		t.Errorf("%+v %v", c, err)
	}
}

func TestRefusedOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"a relative directory": {Dir: "exec", Vendor: "v"},
		"no vendor":            {Dir: "/x"},
		"a vendor that climbs": {Dir: "/x", Vendor: ".."},
		"a vendor with ~":      {Dir: "/x", Vendor: "a~b"},
		"a vendor with /":      {Dir: "/x", Vendor: "a/b"},
		"a vendor with a dash": {Dir: "/x", Vendor: "-v"},
		"that of the built-in": {Dir: "/x", Vendor: "kubernetes.io"},
		"a dash at its end":    {Dir: "/x", Vendor: "foo-"},
		"a dot at its end":     {Dir: "/x", Vendor: "foo."},
		"begins with _":        {Dir: "/x", Vendor: "_foo"},
		"64 characters":        {Dir: "/x", Vendor: strings.Repeat("v", 64)},
		"a driver of no use":   {Dir: "/x", Vendor: "v", Drivers: []string{"zfs"}},
	} {
		if _, err := Install(t.Context(), "/bin/true", o); err == nil || strings.Contains(err.Error(), "not the drivers' program") {
			t.Errorf("%s: install: %v", name, err)
		}
		if _, err := Uninstall(t.Context(), o); err == nil {
			t.Errorf("%s: uninstall", name)
		}
	}
}

// Killed at each crossing, a host sees the driver whole or not at all, and the next install and uninstall leave nothing behind.
func TestKilled(t *testing.T) {
	v1, _ := two(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"make-directory", "install", "remove"} {
		for _, side := range []string{":before", ":after"} {
			dir := filepath.Join(t.TempDir(), "exec")
			run := func(env ...string) error {
				cmd := exec.Command(self)
				cmd.Env = append(os.Environ(), append(env, "BERTH_INSTALL_INTO="+dir, "BERTH_INSTALL="+v1)...)
				return cmd.Run()
			}
			if err := run(boundary.EnvKillAt + "=flexinstall/" + at + side); err == nil {
				t.Fatalf("%s%s: it lives", at, side)
			}
			all, err := List(t.Context(), dir, "")
			if err != nil || len(all) > 1 || len(all) == 1 && all[0].Version != "v1" {
				t.Errorf("%s%s: %+v %v", at, side, all, err)
			}
			if err := run(); err != nil {
				t.Errorf("%s%s: the next: %v", at, side, err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 0 {
				t.Errorf("%s%s: left %v", at, side, entries)
			}
		}
	}
}
