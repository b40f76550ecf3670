package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/test/flexdriver"
)

func init() {
	examples["flexvolume-block.yaml"] = example{pods: []string{"example-flexvolume-block"}, claims: []string{"example-flexvolume-block"},
		prepare: func(s *story, text string) string {
			blockOn(s, "berth/block")
			return strings.ReplaceAll(text, "VOLUME-ID", lent(s, "example", "256Mi", "ext4"))
		}, delete: "pv/example-flexvolume-block"}
}

// blockOn installs Berth's own driver under a name, as an installer does, and waits until the instance has it.
func blockOn(s *story, name string) *flex {
	s.Helper()
	f := flexOn(s)
	program, err := os.ReadFile(filepath.Join(s.in.Bin, "berth-flexvolume"))
	f.must(err)
	f.must(flexdriver.InstallText(f.dir, name, string(program)))
	f.loaded(name)
	return f
}

// lent makes a volume with the CSI driver, puts a file into it, and takes its objects away: what stays is the volume, whose id it returns.
func lent(s *story, name, size, fsType string) string {
	s.Helper()
	class := s.ns + "-" + name
	s.apply(fmt.Sprintf("\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: block.csi.berth.io\nreclaimPolicy: Retain\nparameters: {csi.storage.k8s.io/fstype: %s}\n---", class, fsType) +
		claimYAML(name+"-lender", size, "storageClassName: "+class) + podYAML(name+"-lender", name+"-lender"))
	dir := paths(s, s.ready(name+"-lender"))["data"]
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(migratedData), 0o600); err != nil {
		s.Fatal(err)
	}
	pv := s.claim(name + "-lender").Spec.VolumeName
	made := s.volume(pv)
	s.kubectl("delete", "pod/"+name+"-lender", "pvc/"+name+"-lender", "sc/"+class)
	s.claimGone(name + "-lender")
	s.kubectl("delete", "pv", pv)
	s.volumeGone(pv)
	return made.Spec.CSI.VolumeHandle
}

func flexOptions(id string) string { return `options: {volumeID: "` + id + `"}` }

func holds(t *testing.T, dir string) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != migratedData {
		t.Errorf("the data at %s is %q, %v", dir, b, err)
	}
}

// notesOf are the volumes that an instance has in use through FlexVolume.
func notesOf(f *flex) []string {
	f.Helper()
	left, err := filepath.Glob(filepath.Join(f.in.Dir, "flexvolume", "block", "*"))
	f.must(err)
	return left
}

// nothingOfBlock waits until no FlexVolume volume of a pool is mounted.
func (f *flex) nothingOfBlock() {
	f.Helper()
	f.until("nothing mounted through FlexVolume", func() (bool, string) {
		w, err := f.in.World()
		if err != nil {
			return false, err.Error()
		}
		left := notesOf(f)
		for _, m := range w.Mounts {
			if strings.Contains(m, "~block/") || strings.Contains(m, "/plugins/kubernetes.io/flexvolume/") {
				left = append(left, m)
			}
		}
		return len(left) == 0, strings.Join(left, ", ")
	})
}

// A volume of a pool, through the FlexVolume driver: for two pods, one of which may only read; grown while it is mounted; and it goes as
// it came. With upstream's controllers the attach calls are theirs.
func TestFlexVolumeBlock(t *testing.T) {
	for _, controllers := range []string{"berth", "upstream"} {
		t.Run(controllers, func(t *testing.T) {
			f := blockOn(tellOn(t, own(t, "--controllers", controllers)), "berth/block")
			id := lent(f.story, "data", "320Mi", "xfs")
			f.apply(fmt.Sprintf("\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: kubernetes.io/no-provisioner\nallowVolumeExpansion: true\n---", f.ns) +
				strings.ReplaceAll(f.pv("berth/block", "data", "fsType: xfs, "+flexOptions(id)), "64Mi", "320Mi") +
				strings.Replace(podYAML("reader", "data"), "claimName: data", "claimName: data, readOnly: true", 1))
			dir, reader := f.dataDir("data"), f.dataDir("reader")
			if want := "/volumes/berth~block/" + f.ns + "-data"; !strings.HasSuffix(dir, want) {
				t.Errorf("mounted at %s, want …%s", dir, want)
			}
			holds(t, dir)
			holds(t, reader)
			if m := mountAt(f.story, dir); m.FSType != "xfs" || !strings.HasPrefix(m.Source, "/dev/loop") {
				t.Errorf("mounted %+v", m)
			}
			if err := os.WriteFile(filepath.Join(reader, "g"), nil, 0o600); err == nil {
				t.Error("the pod that may only read can write")
			}
			f.must(os.WriteFile(filepath.Join(dir, "more"), []byte("written through FlexVolume"), 0o600))

			before := sizeOf(t, dir)
			f.kubectl("patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"640Mi"}}}}`)
			f.until("the claim to have grown", func() (bool, string) {
				have := f.claim("data").Status.Capacity.Storage().String()
				return have == "640Mi", have
			})
			if after := sizeOf(t, dir); after < before*3/2 {
				t.Errorf("the filesystem has %d bytes, before %d", after, before)
			}
			if out := f.berth("orphans"); !strings.Contains(out, "none") {
				t.Errorf("orphans: %s", out)
			}

			f.removePod("reader")
			holds(t, dir)
			f.removePod("data")
			f.nothingOfBlock()
		})
	}
}

// One volume through the CSI driver and through FlexVolume: whoever has it keeps it, the other's pod waits and is told by an event, and
// has it when the first has gone.
func TestFlexVolumeBlockAndCSIExcludeEachOther(t *testing.T) {
	f := blockOn(tell(t), "berth/block")
	id := lent(f.story, "data", "64Mi", "ext4")
	f.apply(f.pv("berth/block", "flex", flexOptions(id)) + fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s-csi}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: %[1]s
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: %[1]s, name: csi}
  csi: {driver: block.csi.berth.io, volumeHandle: "%[2]s"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: csi}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[1]s, resources: {requests: {storage: 64Mi}}}
---`, f.ns, id))
	defer f.kubectl("delete", "--wait=false", "pv/"+f.ns+"-flex", "pv/"+f.ns+"-csi")
	holds(t, f.dataDir("flex"))
	f.apply(podYAML("by-csi", "csi"))
	f.event("by-csi", "FailedAttachVolume", "by its FlexVolume driver")
	holds(t, f.dataDir("flex"))

	f.removePod("flex")
	holds(t, f.dataDir("by-csi"))
	f.apply(podYAML("flex", "flex"))
	f.event("flex", "FailedAttachVolume", "by its CSI driver")
	holds(t, f.dataDir("by-csi"))
	f.removePod("by-csi")
	holds(t, f.dataDir("flex"))
	f.removePod("flex")
	f.nothingOfBlock()
}

// `berth up` is killed while a volume is mounted, and ends while one is: the pod keeps its files, and what the next one does with the
// volume works. The driver alone says what to start.
func TestFlexVolumeBlockSurvivesARestart(t *testing.T) {
	in := own(t)
	f := blockOn(tellOn(t, in), "berth/block")
	id := lent(f.story, "data", "64Mi", "ext4")
	f.apply(f.pv("berth/block", "data", flexOptions(id)))
	dir := f.dataDir("data")
	for _, end := range []func() error{in.Kill, in.Stop} {
		f.must(end())
		holds(t, dir)
		detach := exec.Command(flexdriver.Path(f.dir, "berth/block"), "detach", f.ns+"-data", "n")
		detach.Env = append(os.Environ(), "FLEXVOLUME_BERTH_SOCKET="+filepath.Join(in.Dir, "run", "flexvolume.sock"))
		out, err := detach.Output()
		var answer struct{ Status, Message string }
		if json.Unmarshal(out, &answer) != nil || err == nil || answer.Status != "Failure" || !strings.Contains(answer.Message, "start `berth up` with --data-dir "+in.Dir) {
			t.Errorf("with nobody to ask the driver says %s (%v)", out, err)
		}
		f.must(in.Start(f.ctx))
		client, err := in.Client()
		f.must(err)
		f.client = client
		holds(t, f.dataDir("data"))
	}
	// Taken down with no agent that the driver could ask.
	f.must(in.Kill())
	f.must(in.Down(f.ctx))
	if err := emptied(in); err != nil {
		t.Errorf("berth down with nothing running: %v", err)
	}
	f.must(in.Start(f.ctx))
	client, err := in.Client()
	f.must(err)
	f.client = client
	f.until("the volume mounted again", func() (bool, string) {
		b, err := os.ReadFile(filepath.Join(dir, "f"))
		return err == nil && string(b) == migratedData, fmt.Sprint(err)
	})
	f.apply(podYAML("second", "data"))
	holds(t, f.dataDir("second"))
	f.removePod("data")
	f.removePod("second")
	f.nothingOfBlock()
}

// A pod names the volume itself; under another vendor's name; with mistakes that the events name.
func TestFlexVolumeBlockOfAPod(t *testing.T) {
	f := blockOn(tell(t), "acme/block")
	id := lent(f.story, "data", "64Mi", "ext4")
	f.apply(flexPod("none", "acme/block", "") + flexPod("absent", "acme/block", ", "+flexOptions("vol-0123456789")) +
		flexPod("misspelt", "acme/block", ", options: {volumeId: x}") + flexPod("app", "acme/block", ", "+flexOptions(id)))
	holds(t, f.dataDir("app"))
	f.event("none", "FailedAttachVolume", "volumeID is missing")
	f.event("absent", "FailedAttachVolume", "no pool of this node has it")
	f.event("misspelt", "FailedAttachVolume", "volumeId")
	for _, pod := range []string{"none", "absent", "misspelt", "app"} {
		f.removePod(pod)
	}
	f.nothingOfBlock()
}

// A volume that is used through FlexVolume is migrated, and used through CSI by the same claim.
func TestFlexVolumeBlockIsMigrated(t *testing.T) {
	for _, controllers := range []string{"berth", "upstream"} {
		t.Run(controllers, func(t *testing.T) {
			f := blockOn(tellOn(t, own(t, "--controllers", controllers)), "berth/block")
			id, dir, pv := lent(f.story, "data", "64Mi", "ext4"), t.TempDir(), f.ns+"-data"
			f.apply(f.pv("berth/block", "data", flexOptions(id)))
			holds(t, f.dataDir("data"))
			if _, err := f.migrateFlex(dir, pv); err == nil || !strings.Contains(err.Error(), "pod data") {
				t.Errorf("while a pod uses it: %v", err)
			}
			f.removePod("data")
			f.until("nobody to use it", func() (bool, string) {
				nodes, err := f.client.CoreV1().Nodes().List(f.ctx, metav1.ListOptions{})
				f.must(err)
				s := nodes.Items[0].Status
				return len(s.VolumesAttached)+len(s.VolumesInUse) == 0, fmt.Sprint(s.VolumesAttached, s.VolumesInUse)
			})
			if _, err := f.migrateFlex(dir, pv); err != nil {
				t.Fatal(err)
			}
			hasData(f.story, "data")
			if _, err := f.migrateFlex(dir, "--undo", undoFile(f.story, dir)); err != nil {
				t.Fatal(err)
			}
			f.apply(podYAML("again", "data"))
			holds(t, f.dataDir("again"))
			f.removePod("again")
			f.nothingOfBlock()
		})
	}
}
