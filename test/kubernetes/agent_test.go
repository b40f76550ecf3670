//go:build kubernetes

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// agent is a `berth up` on the cluster's node, beside its kubelet: what serves the FlexVolume block driver there. It has an API of
// its own, in which a test makes the volumes. It is in the default directory, where an installed driver looks for its socket.
type agent struct {
	berth string // the program, as the node sees it
	out   *lockedBuffer
	cmd   *exec.Cmd
}

// programs copies Berth's programs, once, to where the node sees them: it does not see all of this machine.
var programs = sync.OnceValues(func() (dir string, err error) {
	dir, from := shared.run("berth"), os.Getenv("BERTH_BIN")
	if from == "" {
		return "", errors.New("BERTH_BIN is not set: run the tests through make")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, program := range []string{"berth", "berth-apiserver", "berth-flexvolume"} {
		// One that runs cannot be written, only replaced.
		if _, err := output(exec.Command("cp", "--remove-destination", filepath.Join(from, program), filepath.Join(dir, program))); err != nil {
			return "", err
		}
	}
	return dir, nil
})

// theAgent is that of all stories, started by the first that wants it.
var theAgent = sync.OnceValues(func() (*agent, error) {
	dir, err := programs()
	if err != nil {
		return nil, err
	}
	a := &agent{berth: filepath.Join(dir, "berth")}
	if err := uninstall(); err != nil { // what is installed in the cluster has the same data directory
		return nil, err
	}
	// Of tests that ran before on this cluster, perhaps another version.
	_, _ = output(shared.inside(context.Background(), "pkill", "--signal", "KILL", "--exact", "berth"))
	return a, a.start()
})

// flexVolumeProgram is Berth's FlexVolume executable.
func (s *story) flexVolumeProgram() string {
	s.Helper()
	dir, err := programs()
	if err != nil {
		s.Fatal(err)
	}
	return filepath.Join(dir, "berth-flexvolume")
}

func (s *story) agent() *agent {
	s.Helper()
	a, err := theAgent()
	if err != nil {
		s.Fatal(err)
	}
	return a
}

// start returns when the agent is ready.
func (a *agent) start() error {
	a.out = &lockedBuffer{}
	a.cmd = shared.inside(context.Background(), a.berth, "up", "--pool-size=4Gi", "--docker-plugin=off", "--snapshot-metadata=off")
	a.cmd.Stdout, a.cmd.Stderr = a.out, a.out
	if err := a.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(a.out.String(), "  ready;"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("berth up is not ready after 2 minutes: %s", a.out)
		}
	}
	return nil
}

// kill is kill -9.
func (a *agent) kill(s *story) {
	s.Helper()
	s.inside("pkill", "--signal", "KILL", "--exact", "berth")
	_ = a.cmd.Wait()
}

// restart starts an agent that was killed.
func (a *agent) restart(s *story) {
	s.Helper()
	if err := a.start(); err != nil {
		s.Fatal(err)
	}
}

// volume makes a volume in the agent's own API, until the end of the story, and returns its id.
func (a *agent) volume(s *story, size, fsType string) (id string) {
	s.Helper()
	name := "data-" + s.ns
	cmd := shared.inside(s.ctx, a.berth, "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %[3]s}
provisioner: block.csi.berth.io
allowVolumeExpansion: true
parameters: {csi.storage.k8s.io/fstype: %[3]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[3]s, resources: {requests: {storage: %[2]s}}}
`, name, size, fsType))
	if _, err := output(cmd); err != nil {
		s.Fatal(err)
	}
	s.last = append(s.last, func() error {
		_, err := output(shared.inside(context.Background(), a.berth, "kubectl", "delete", "persistentvolumeclaim", name, "--timeout=60s"))
		return err
	})
	s.inside(a.berth, "kubectl", "wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=60s", "persistentvolumeclaim/"+name)
	var list corev1.PersistentVolumeList
	if err := json.Unmarshal([]byte(s.inside(a.berth, "kubectl", "get", "persistentvolume", "-o", "json")), &list); err != nil {
		s.Fatal(err)
	}
	for _, pv := range list.Items {
		if pv.Spec.ClaimRef.Name == name {
			return pv.Spec.CSI.VolumeHandle
		}
	}
	s.Fatalf("no volume of claim %s", name)
	return ""
}

// lockedBuffer is what a process writes while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = &lockedBuffer{}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
