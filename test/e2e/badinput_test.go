package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.io/berth/test/instance"
)

// What the API itself refuses is passed on, and nothing is made.
func TestTheAPIsRefusalIsPassedOn(t *testing.T) {
	s := tell(t)
	for _, c := range []struct{ name, yaml, want string }{
		{"not YAML", "a: b: c", "mapping values are not allowed"},
		{"no kind", "metadata: {name: x}", "kind"},
		{"size zero", claimYAML("zero", "0"), "must be greater than zero"},
		{"size negative", claimYAML("minus", `"-1Gi"`), "must be greater than zero"},
		{"size that is none", claimYAML("banana", "banana"), "quantities must match"},
		{"access mode that is none", strings.Replace(claimYAML("mode", "1Gi"), "ReadWriteOnce", "WriteSometimes", 1), "Unsupported value"},
		{"driver name", "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: Not_A_Name}", "Invalid value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.in.BerthInput(s.ctx, c.yaml, "kubectl", "apply", "-n", s.ns, "-f", "-")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a refusal with %q", err, c.want)
			}
		})
	}
}

// What only the flow can refuse stays an object that says what is wrong: an event, and `berth why` with advice.
func TestTheObjectSaysWhatIsWrong(t *testing.T) {
	s := tell(t)
	unknown := s.ns + "-unknown-driver"
	s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: nobody.example.com
`, unknown))
	t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "sc", unknown) })
	immediate := "storageClassName: berth-block-immediate"
	for _, c := range []struct{ name, yaml, reason, text, why string }{
		{"unknown-class", claimYAML("unknown-class", "16Mi", "storageClassName: no-such-class"), "ProvisioningFailed", `"no-such-class" not found`, "no-such-class"},
		{"beyond-the-pool", claimYAML("beyond-the-pool", "900Ti", immediate), "ProvisioningFailed", "pool", "pool"},
		{"many-writers", strings.Replace(claimYAML("many-writers", "16Mi", immediate), "ReadWriteOnce", "ReadWriteMany", 1), "ProvisioningFailed", "", "access mode"},
		{"unknown-driver", claimYAML("unknown-driver", "16Mi", "storageClassName: "+unknown), "ExternalProvisioning", "nobody.example.com", "nobody.example.com"},
		{"no-class", claimYAML("no-class", "16Mi", `storageClassName: ""`), "FailedBinding", "no persistent volumes available", ""},
		{"waits-for-a-pod", claimYAML("waits-for-a-pod", "16Mi"), "WaitForFirstConsumer", "", "pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := s.as(t)
			in.apply(c.yaml)
			in.event(c.name, c.reason, c.text)
			if phase := in.claim(c.name).Status.Phase; phase != "Pending" {
				t.Errorf("phase %s, want Pending", phase)
			}
			if why := in.berth("why", "-n", s.ns, "pvc/"+c.name); !strings.Contains(why, c.why) {
				t.Errorf("berth why does not say %q:\n%s", c.why, why)
			}
			in.kubectl("delete", "pvc", c.name)
			in.claimGone(c.name)
		})
	}
	if left, _ := filepath.Glob(filepath.Join(s.in.Dir, "pools/default/volumes/*"+s.ns+"*")); len(left) > 0 {
		t.Errorf("half-made volumes: %q", left)
	}
}

// A volume that names something that is not there: the pod waits and says so; it can be deleted.
func TestVolumeThatIsNotThere(t *testing.T) {
	s := tell(t)
	name := s.ns + "-ghost"
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %s}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {namespace: %s, name: ghost}
  csi: {driver: block.csi.berth.io, volumeHandle: ../../etc}
---`, name, s.ns) + claimYAML("ghost", "1Gi", `storageClassName: ""`) + podYAML("app", "ghost"))
	t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "pv", name, "--wait=false") })
	s.event("app", "FailedAttachVolume", "etc")
	if why := s.berth("why", "-n", s.ns, "pod/app"); !strings.Contains(why, "etc") {
		t.Errorf("berth why:\n%s", why)
	}
	s.kubectl("delete", "pod", "app", "--timeout=30s")
	s.podGone("app")
}

// Each way in which a start can be refused: one clear line, an exit code, nothing lost.
func TestRefusedStarts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("a: b: c"), 0o644); err != nil {
		t.Fatal(err)
	}
	api := strings.TrimPrefix(strings.TrimSpace(kubectlShared(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")), "https://")
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"port taken", []string{"--listen", api}, "cannot listen on"},
		{"listen that is none", []string{"--listen", "nonsense"}, "not ADDR:PORT"},
		{"unknown flag", []string{"--no-such-flag"}, "unknown flag"},
		{"size that is none", []string{"--pool-size", "banana"}, "banana"},
		{"size and device", []string{"--pool-size", "1Gi", "--pool-device", "/dev/null"}, "exclude"},
		{"device that is none", []string{"--pool-device", file}, "block device"},
		{"wrong YAML", []string{"--apply", bad}, "bad.yaml"},
		{"no such file", []string{"--apply", "/no/such/file"}, "/no/such/file"},
		{"controllers that are none", []string{"--controllers", "mine"}, "mine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "berth-no-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			in, err := instance.New(dir, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			refused(t, in, c.want)
			if err := emptied(in); err != nil {
				t.Error(err)
			}
		})
	}
}

// A machine or container without loop devices: said in one line, with what to do.
func TestNoLoopDevices(t *testing.T) {
	dir, err := os.MkdirTemp("", "berth-nl-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// Only the new mount namespace has no loop devices.
	script := fmt.Sprintf("mount --bind /dev/null /dev/loop-control && exec %s/berth up --data-dir %s", shared.Bin, dir)
	out, err := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", script).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no loop devices here (load") {
		t.Errorf("%v: %s", err, out)
	}
}

// kubectlShared asks the shared instance, outside any story.
func kubectlShared(t *testing.T, args ...string) string {
	t.Helper()
	out, err := shared.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused starts an instance that must end at once with one line that contains want.
func refused(t *testing.T, in *instance.Instance, want string) {
	t.Helper()
	if err := in.Launch(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-in.Ended():
	case <-time.After(60 * time.Second):
		_ = in.Kill()
		t.Fatalf("still running:\n%s", in.Output())
	}
	if in.ExitCode() == 0 {
		t.Error("exit code 0")
	}
	lines := strings.Split(strings.TrimSpace(in.Output()), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "berth: ") || !strings.Contains(last, want) {
		t.Errorf("the last line is %q, want one that contains %q\n%s", last, want, in.Output())
	}
}

// A data directory of another version, a truncated pool image, no root: refused, and as it was.
func TestRefusedDataDirectories(t *testing.T) {
	t.Run("another version", func(t *testing.T) {
		dir := t.TempDir()
		if len(dir) > 60 {
			dir, _ = os.MkdirTemp("", "berth-v-")
			defer os.RemoveAll(dir)
		}
		if err := os.WriteFile(filepath.Join(dir, "version"), []byte("99\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		in, err := instance.New(dir)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, in, "another version")
	})
	t.Run("truncated pool image", func(t *testing.T) {
		in := own(t)
		if err := in.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(in.Dir, "pools", "default.img")
		fi, err := os.Stat(image)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, fi.Size()/2); err != nil {
			t.Fatal(err)
		}
		refused(t, in, "pool")
		if now, err := os.Stat(image); err != nil || now.Size() != fi.Size()/2 {
			t.Errorf("the image was changed: %v %v", now.Size(), err)
		}
	})
	t.Run("no root", func(t *testing.T) {
		c := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", filepath.Join(shared.Bin, "berth"), "up", "--data-dir", "/tmp/berth-nobody")
		out, err := c.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "root") {
			t.Errorf("%v: %s", err, out)
		}
	})
}
