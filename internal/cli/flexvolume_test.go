package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func flexvolumeOutput(args ...string) (string, error) {
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"flexvolume"}, args...))
	err := root.Execute()
	return out.String(), err
}

// A directory with a stranger's driver: it is listed, not executed, not touched.
func TestFlexvolume(t *testing.T) {
	dir := t.TempDir()
	if out, err := flexvolumeOutput("list", "--dir", filepath.Join(dir, "none")); err != nil || !strings.Contains(out, "berth flexvolume install") {
		t.Errorf("%s %v", out, err)
	}
	theirs := filepath.Join(dir, "acme~nfs", "nfs")
	if err := errors.Join(os.Mkdir(filepath.Dir(theirs), 0o755), os.WriteFile(theirs, []byte("#!/bin/sh\nexit 3\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := flexvolumeOutput("list", "--dir", dir); err != nil || !strings.Contains(out, "acme/nfs  (not Berth's)") {
		t.Errorf("%s %v", out, err)
	}
	if out, err := flexvolumeOutput("list", "--dir", dir, "--vendor", "berth", "-o", "json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("%s %v", out, err)
	}
	// Without --vendor it is Berth's own, whatever the other subcommands' default is.
	if out, err := flexvolumeOutput("uninstall", "--dir", dir); err != nil || !strings.Contains(out, "no driver of berth") {
		t.Errorf("%s %v", out, err)
	}
	if out, err := flexvolumeOutput("uninstall", "nfs", "--vendor", "acme", "--dir", dir); err == nil || !strings.Contains(err.Error(), "it is not Berth's") {
		t.Errorf("%s %v", out, err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Error(err)
	}
	if _, err := flexvolumeOutput("install", "zfs", "--dir", dir); code(err, os.Stderr) != exitUsage {
		t.Errorf("%v", err)
	}
	if _, err := flexvolumeOutput("install", "--dir", dir, "--program", theirs); err == nil || !strings.Contains(err.Error(), "not the drivers' program") {
		t.Errorf("%v", err)
	}
	if out, err := flexvolumeOutput("frobnicate"); code(err, os.Stderr) != exitUsage {
		t.Errorf("%s %v", out, err)
	}
	out, err := flexvolumeOutput("--help")
	if err != nil || !strings.Contains(out, "--vendor k8s") {
		t.Errorf("%s %v", out, err)
	}
}
