package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// What a pod has written into an emptyDir on the disk is there after `berth down` and `berth up`, whether it was the running
// instance that took things down or nothing ran any more; what was in memory is not. It goes with the pod.
func TestDownKeepsEmptyDirs(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: busybox
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
`)
	p := paths(s, s.ready("app"))
	onDisk := filepath.Join(p["disk"], "file")
	for _, dir := range p {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("written"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, running := range []bool{true, false} {
		if !running {
			if err := in.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Down(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := in.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		s.until("the file where it was, and memory empty", func() (bool, string) {
			data, err := os.ReadFile(onDisk)
			_, inMemory := os.Stat(filepath.Join(p["memory"], "file"))
			_, mounted := os.Stat(p["memory"])
			return string(data) == "written" && os.IsNotExist(inMemory) && mounted == nil, errText(err)
		})
	}
	s.ready("app")
	s.kubectl("delete", "pod", "app")
	if _, err := os.Stat(onDisk); !os.IsNotExist(err) {
		t.Errorf("after its pod: %v", err)
	}
}
