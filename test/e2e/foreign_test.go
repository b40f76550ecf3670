package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// buildForeign builds the driver into the shared instance's directory, which goes at the end.
var buildForeign = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(shared.Dir, "foreign")
	out, err := exec.Command("go", "build", "-o", bin, "berth.io/berth/test/foreign").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// foreign is a running third party's driver with a class of its name.
type foreign struct {
	s     *story
	name  string
	state string
	cmd   *exec.Cmd
}

// startForeign runs the driver against the story's instance and makes its CSIDriver and StorageClass.
func startForeign(s *story, name string, attach bool, args ...string) *foreign {
	s.Helper()
	f := &foreign{s: s, name: name}
	state, err := os.MkdirTemp("", "berth-fs-")
	if err != nil {
		s.Fatal(err)
	}
	f.state = state
	s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: %[1]s}
spec: {attachRequired: %[2]v, fsGroupPolicy: None}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %[1]s}
provisioner: %[1]s
`, name, attach))
	f.start(append([]string{fmt.Sprintf("--attach=%v", attach)}, args...)...)
	s.Cleanup(func() {
		s.deleteNamespace()
		f.stop()
		_, _ = s.in.Kubectl(s.ctx, "delete", "sc,csidriver", name)
		os.RemoveAll(state)
	})
	return f
}

func (f *foreign) start(args ...string) {
	f.s.Helper()
	bin, err := buildForeign()
	if err != nil {
		f.s.Fatal(err)
	}
	f.cmd = exec.Command(bin, append([]string{"--name", f.name, "--state", f.state, "--node", "n1",
		"--endpoint", filepath.Join(f.s.in.Dir, "plugins", f.name, "csi.sock"), "--registry", filepath.Join(f.s.in.Dir, "plugins_registry")}, args...)...)
	f.cmd.Stderr = os.Stderr
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := f.cmd.Start(); err != nil {
		f.s.Fatal(err)
	}
}

func (f *foreign) stop() {
	if f.cmd != nil && f.cmd.Process != nil {
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
	}
	os.Remove(filepath.Join(f.s.in.Dir, "plugins_registry", f.name+"-reg.sock"))
}

// A third party's driver registers in plugins_registry and works unchanged, with and without attach.
func TestForeignDriver(t *testing.T) {
	for _, attach := range []bool{false, true} {
		t.Run(fmt.Sprintf("attach=%v", attach), func(t *testing.T) {
			s := tell(t)
			name := fmt.Sprintf("foreign-%v.example.com", attach)
			f := startForeign(s, name, attach)
			s.apply(claimYAML("data", "1Gi", "storageClassName: "+name) + podYAML("app", "data"))
			p := paths(s, s.ready("app"))["data"]
			if err := os.WriteFile(filepath.Join(p, "f"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			volume := s.claim("data").Spec.VolumeName
			if _, err := os.Stat(filepath.Join(f.state, volume, "f")); err != nil {
				t.Errorf("what the pod wrote is not in the driver's volume: %v", err)
			}
			if out := s.kubectl("get", "csinode", "-o", "jsonpath={.items[0].spec.drivers[*].name}"); !strings.Contains(out, name) {
				t.Errorf("CSINode has the drivers %q", out)
			}
			s.kubectl("delete", "pod/app", "pvc/data")
			s.volumeGone(volume)
			if left, _ := os.ReadDir(f.state); len(left) > 0 {
				t.Errorf("the driver still has %v", left)
			}
		})
	}
}

// A driver that hangs, crashes in the middle of an RPC, or answers rubbish holds up only its own volumes; when it is
// mended the journey completes.
func TestBrokenDriverHoldsUpOnlyItsOwnVolumes(t *testing.T) {
	for _, fault := range []string{"CreateVolume=hang", "CreateVolume=crash", "CreateVolume=rubbish", "NodeStageVolume=hang",
		"NodeStageVolume=crash", "NodePublishVolume=hang", "NodePublishVolume=error", "ControllerPublishVolume=hang"} {
		t.Run(fault, func(t *testing.T) {
			s := tell(t)
			name := strings.ToLower(strings.ReplaceAll(fault, "=", "-")) + ".example.com"
			f := startForeign(s, name, true, "--fault", fault)
			s.apply(claimYAML("stuck", "1Gi", "storageClassName: "+name) + podYAML("stuck", "stuck"))
			time.Sleep(time.Second) // into the fault
			s.apply(claimYAML("fine", "16Mi") + podYAML("fine", "fine"))
			began := time.Now()
			s.ready("fine")
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("a volume of another driver took %s", took)
			}
			if p := s.pod("stuck"); isReady(p) {
				t.Fatal("the pod of the broken driver is Ready")
			}
			if why := s.berth("why", "-n", s.ns, "pod/stuck"); !strings.Contains(why, name) {
				t.Errorf("berth why does not name the driver:\n%s", why)
			}
			f.stop()
			f.start("--attach")
			s.within(3*time.Minute, "the pod of the mended driver", func() (bool, string) {
				p := s.pod("stuck")
				return isReady(p), fmt.Sprintf("%+v", p.Status.Conditions)
			})
		})
	}
}

// A plugin that registers under a name that no driver may have, or does not answer, is reported and blocks nobody.
func TestRubbishRegistration(t *testing.T) {
	s := tell(t)
	f := startForeign(s, "rubbish.example.com", false, "--fault", "NodeGetInfo=rubbish")
	_ = f
	s.until("the failed registration in berth status", func() (bool, string) {
		out := s.berth("status")
		return strings.Contains(out, "rubbish.example.com"), out
	})
	s.apply(claimYAML("fine", "16Mi") + podYAML("fine", "fine"))
	s.ready("fine")
}
