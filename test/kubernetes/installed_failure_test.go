//go:build kubernetes

package kubernetes

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The API server is gone for a minute: a pod goes on writing, nothing is mounted anew, and afterwards everything works by itself.
func TestInstalledWithoutTheAPIServer(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("xfs")
	hold := shared.run("hold-kube-apiserver")
	if err := os.WriteFile(hold, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(hold) })
	s.inside("pkill", "--signal", "KILL", "--exact", "kube-apiserver")
	gone := time.NewTimer(time.Minute)
	<-gone.C
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	s.until("the API server again", func() error {
		_, err := output(shared.inside(s.ctx, "kubectl", "get", "--raw", "/readyz"))
		return err
	})
	w.unharmed()
	s.until("everything Ready", func() error { return in.ready(s.ctx) })
	// Upstream's scheduler has its watches again at different times. A pod whose claim it does not know yet waits for its look at everything, each 5 minutes.
	s.more()
	s.journeyWithin(6*time.Minute, "after")
	w.unharmed()
}

// Somebody deletes the driver's socket: it is there again by itself, and volumes that are mounted stay so.
func TestInstalledSocketIsRemoved(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("ext4")
	s.inside("rm", "/var/lib/kubelet/plugins/"+driverName+"/csi.sock")
	s.journey("after")
	w.unharmed()
	s.until("everything Ready", func() error { return in.ready(s.ctx) })
}

// The leader loses its lease while it stands still, another takes over, and then the first one wakes: a claim never has two volumes.
func TestInstalledTwoControllers(t *testing.T) {
	s := tell(t)
	in := s.installed()
	s.last = append(s.last, in.apply)
	s.inside("kubectl", "-n", system, "scale", controller, "--replicas=2")
	s.rolledOut(controller)
	before := s.onDisk()
	leader := s.leader()
	process := s.processOf(leader)
	const claims = 20
	var manifests strings.Builder
	for i := range claims {
		fmt.Fprintf(&manifests, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim-%d}
spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block-immediate, resources: {requests: {storage: 8Mi}}}
---`, i)
	}
	s.apply(manifests.String())
	s.inside("kill", "-STOP", process)
	awake := false
	wake := func() {
		if !awake {
			awake = true
			s.inside("kill", "-CONT", process)
		}
	}
	t.Cleanup(wake)
	s.until("another leader", func() error {
		if now := s.leader(); now == leader {
			return fmt.Errorf("it is %s still", now)
		}
		return nil
	})
	wake()
	s.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=120s", "persistentvolumeclaim", "--all")
	var volumes corev1.PersistentVolumeList
	s.get(&volumes, "persistentvolume")
	of := map[string]int{}
	for _, pv := range volumes.Items {
		if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == s.ns {
			of[pv.Spec.ClaimRef.Name]++
		}
	}
	for claim, n := range of {
		if n != 1 {
			t.Errorf("claim %s has %d volumes", claim, n)
		}
	}
	if made := len(s.onDisk()) - len(before); made != claims || len(of) != claims {
		t.Errorf("%d volumes on the disk and %d claims with a volume, for %d claims", made, len(of), claims)
	}
	s.kubectl("delete", "persistentvolumeclaim", "--all", "--timeout=120s")
	s.until("nothing left", func() error {
		if left := s.onDisk(); len(left) != len(before) {
			return fmt.Errorf("there were %q and are %q", before, left)
		}
		return nil
	})
}

// leader is the controller's pod that holds their lease. One that was killed, or was no pod, holds it until it has run out.
func (s *story) leader() (name string) {
	s.Helper()
	s.until("a controller that leads", func() error {
		holder := s.inside("kubectl", "-n", system, "get", "lease", "berth-controller", "-o", "jsonpath={.spec.holderIdentity}")
		name, _, _ = strings.Cut(holder, "_")
		if !slices.ContainsFunc(s.podsOf(controller), func(p corev1.Pod) bool { return p.Name == name }) {
			return fmt.Errorf("the lease is held by %q", holder)
		}
		return nil
	})
	return name
}

// processOf is the process id, as the node counts, of the controller in that pod.
func (s *story) processOf(pod string) string {
	s.Helper()
	found := strings.Fields(s.inside("sh", "-c", `for p in $(pgrep -f 'berth controller'); do
		if tr '\0' '\n' </proc/$p/environ 2>/dev/null | grep -qx "POD_NAME=$1"; then echo $p; fi
	done`, "sh", pod))
	if len(found) != 1 {
		s.Fatalf("the processes of %s are %q", pod, found)
	}
	return found[0]
}

// The pool is full: the claim says so with both figures, others go on, and it is bound when there is room.
func TestInstalledDiskIsFull(t *testing.T) {
	s := tell(t)
	s.installed()
	w := s.writes("ext4")
	available := strings.TrimSpace(s.inside("kubectl", "get", "blockpools.storage.berth.io", "node1", "-o", "jsonpath={.status.maximumVolumeBytes}"))
	var bytes int64
	if _, err := fmt.Sscan(available, &bytes); err != nil {
		t.Fatalf("%q: %v", available, err)
	}
	claim := func(name string, mib int64) {
		s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block-immediate, resources: {requests: {storage: %dMi}}}
`, name, mib))
	}
	claim("most", bytes>>20-64)
	s.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=120s", "persistentvolumeclaim/most")
	claim("more", 512)
	s.event("more", "ProvisioningFailed", "node1")
	w.unharmed()
	s.kubectl("delete", "persistentvolumeclaim/most", "--timeout=60s")
	s.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=120s", "persistentvolumeclaim/more")
	s.kubectl("delete", "persistentvolumeclaim/more", "--timeout=60s")
}
