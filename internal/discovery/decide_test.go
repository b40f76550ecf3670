package discovery

import (
	"errors"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "11-22", Labels: map[string]string{v1.LabelHostname: name, "zone": "z"}}}
}

// volume is as newVolume makes it, in a phase.
func volume(e *entry, phase v1.PersistentVolumePhase, change ...func(*v1.PersistentVolume)) *v1.PersistentVolume {
	pv := newVolume(e, Class{Mode: e.mode(), AccessMode: v1.ReadWriteOnce}, &storagev1.StorageClass{}, node("n"), &Config{})
	pv.Status.Phase = phase
	for _, c := range change {
		c(pv)
	}
	return pv
}

func directory() *entry {
	return &entry{class: "c", file: "d", path: "/m/d", disk: "1", cluster: "here", capacity: gib}
}

func TestDecideNew(t *testing.T) {
	elsewhere := volume(&entry{class: "c", file: "x", path: "/m/x", disk: "1"}, v1.VolumeBound)
	for name, tc := range map[string]struct {
		change    func(*entry)
		elsewhere *v1.PersistentVolume
		want      step
		says      string
	}{
		"empty and ours":               {func(*entry) {}, nil, offer, ""},
		"empty and without a mark":     {func(e *entry) { e.disk, e.cluster = "", "" }, nil, offer, ""},
		"data":                         {func(e *entry) { e.data = "precious" }, nil, refuse, "precious"},
		"a device with data":           {func(e *entry) { e.data, e.device = "ext4", true }, nil, refuse, "wipefs"},
		"of another cluster":           {func(e *entry) { e.cluster = "there" }, nil, refuse, "another cluster"},
		"made for it elsewhere":        {func(*entry) {}, elsewhere, refuse, "/m/x"},
		"by another node, shared":      {func(*entry) {}, volume(directory(), v1.VolumeBound), leave, ""},
		"of a node that was renamed":   {func(*entry) {}, volume(directory(), v1.VolumeBound), refuse, "of node n"},
		"not mounted":                  {func(e *entry) { e.absent, e.problem = true, errNotMounted }, nil, refuse, "nothing is mounted"},
		"without capacity":             {func(e *entry) { e.capacity = 0 }, nil, refuse, "capacity"},
		"a problem goes before a data": {func(e *entry) { e.problem, e.data = errors.New("read-only"), "x" }, nil, refuse, "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			e := directory()
			tc.change(e)
			got, err := decideNew(e, "here", tc.elsewhere, name == "by another node, shared")
			if got != tc.want || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestDecideKnown(t *testing.T) {
	retain := func(pv *v1.PersistentVolume) {
		pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
	}
	block := func(pv *v1.PersistentVolume) { mode := v1.PersistentVolumeBlock; pv.Spec.VolumeMode = &mode }
	for name, tc := range map[string]struct {
		change func(*entry)
		phase  v1.PersistentVolumePhase
		volume func(*v1.PersistentVolume)
		want   step
		says   string
	}{
		"offered":                    {nil, v1.VolumeAvailable, nil, leave, ""},
		"bound":                      {nil, v1.VolumeBound, nil, leave, ""},
		"not yet looked at":          {nil, "", nil, leave, ""},
		"released":                   {nil, v1.VolumeReleased, nil, clean, ""},
		"released and retained":      {nil, v1.VolumeReleased, retain, leave, ""},
		"released, another disk":     {func(e *entry) { e.disk = "2" }, v1.VolumeReleased, nil, report, "not the one"},
		"released, formatted anew":   {func(e *entry) { e.disk, e.cluster = "", "" }, v1.VolumeReleased, nil, report, "no mark"},
		"released, another cluster":  {func(e *entry) { e.cluster = "there" }, v1.VolumeReleased, nil, report, "another cluster"},
		"released, another class":    {func(e *entry) { e.class = "d" }, v1.VolumeReleased, nil, report, "class c"},
		"released, not mounted":      {func(e *entry) { e.absent, e.problem = true, errNotMounted }, v1.VolumeReleased, nil, lost, "mount"},
		"released, read-only":        {func(e *entry) { e.problem = errors.New("read-only") }, v1.VolumeReleased, nil, report, "read-only"},
		"wants a device":             {nil, v1.VolumeAvailable, block, report, "incorrect Volume Mode"},
		"the original's":             {nil, v1.VolumeBound, func(pv *v1.PersistentVolume) { delete(pv.Annotations, annDisk) }, adopt, ""},
		"the original's, no mark":    {func(e *entry) { e.disk, e.cluster = "", "" }, v1.VolumeReleased, func(pv *v1.PersistentVolume) { delete(pv.Annotations, annDisk) }, adopt, ""},
		"about to go":                {nil, v1.VolumeReleased, func(pv *v1.PersistentVolume) { now := metav1.Now(); pv.DeletionTimestamp = &now }, leave, ""},
		"gone while it is bound":     {func(e *entry) { e.absent, e.problem = true, errors.New("no such file") }, v1.VolumeBound, nil, lost, ""},
		"failed is never for wiping": {nil, v1.VolumeFailed, nil, leave, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := directory()
			pv := volume(e, tc.phase)
			if tc.change != nil {
				tc.change(e)
			}
			if tc.volume != nil {
				tc.volume(pv)
			}
			got, err := decideKnown(e, "here", pv)
			if got != tc.want || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// The names are the original's: these are FNV-1a (RFC 9923, 32 bits) of file, node and class in a row, computed without the code.
func TestVolumeName(t *testing.T) {
	naive := func(s string) uint32 {
		h := uint32(2166136261)
		for _, b := range []byte(s) {
			h = (h ^ uint32(b)) * 16777619
		}
		return h
	}
	for _, tc := range [][3]string{{"vol1", "node-1", "fast-disks"}, {"", "", ""}, {"disk", "n", "c"}} {
		want := "local-pv-" + hex(naive(tc[0]+tc[1]+tc[2]))
		if got := volumeName(tc[0], tc[1], tc[2]); got != want {
			t.Errorf("%q: %s, want %s", tc, got, want)
		}
	}
	if got := volumeName("", "", ""); got != "local-pv-811c9dc5" {
		t.Error(got)
	}
}

func hex(n uint32) (s string) {
	for ; n > 0; n /= 16 {
		s = string("0123456789abcdef"[n%16]) + s
	}
	return s
}

func TestRoundDown(t *testing.T) {
	for bytes, want := range map[int64]int64{
		0: 0, 5: 5, 10*mib - 1: 10*mib - 1, 10 * mib: 10 * mib, 10*mib + 1: 10 * mib, 10*gib - 1: 10*1024*mib - mib, 10*gib + mib: 10 * gib, 931*gib + 5: 931 * gib,
	} {
		if got := roundDown(bytes); got != want {
			t.Errorf("%d: %d, want %d", bytes, got, want)
		}
	}
}

func TestMadeHere(t *testing.T) {
	for name, tc := range map[string]struct {
		by   string
		host string
		want bool
	}{
		"by this one":                         {"local-volume-provisioner-n-11-22", "n", true},
		"before the node was made anew":       {"local-volume-provisioner-n-99", "n", true},
		"by name only":                        {"local-volume-provisioner-n", "n", true},
		"of a node whose name begins alike":   {"local-volume-provisioner-n-b-77", "n-b", false},
		"of another node":                     {"local-volume-provisioner-m-11-22", "m", false},
		"by hand":                             {"", "n", false},
		"by another provisioner":              {"example.com/local", "n", false},
		"with this word and for another node": {"local-volume-provisioner-n-11-22", "m", false},
	} {
		t.Run(name, func(t *testing.T) {
			pv := volume(directory(), v1.VolumeAvailable)
			pv.Annotations[AnnProvisionedBy] = tc.by
			pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] = tc.host
			if got := madeHere(pv, node("n")); got != tc.want {
				t.Error(got)
			}
		})
	}
}

func TestNewVolume(t *testing.T) {
	policy := v1.PersistentVolumeReclaimRetain
	c := &Config{NodeLabels: []string{"zone", "rack"}, Labels: map[string]string{"tier": "fast"}, SetOwner: true, UseNodeNameOnly: true}
	e := &entry{class: "c", file: "d", path: "/m/d", disk: "1", capacity: 20*gib + 5, device: true}
	pv := newVolume(e, Class{Mode: v1.PersistentVolumeFilesystem, FSType: "xfs", AccessMode: v1.ReadWriteOnce},
		&storagev1.StorageClass{ReclaimPolicy: &policy, MountOptions: []string{"noatime"}}, node("n"), c)
	capacity := pv.Spec.Capacity[v1.ResourceStorage]
	if pv.Annotations[AnnProvisionedBy] != "local-volume-provisioner-n" || pv.Annotations[annDisk] != "1" || capacity.String() != "20Gi" ||
		pv.Labels["zone"] != "z" || pv.Labels["tier"] != "fast" || len(pv.Labels) != 2 || *pv.Spec.Local.FSType != "xfs" || pv.Spec.Local.Path != "/m/d" ||
		pv.Spec.PersistentVolumeReclaimPolicy != policy || pv.Spec.MountOptions[0] != "noatime" || pv.OwnerReferences[0].UID != "11-22" ||
		Hostnames(pv)[0] != "n" || *pv.Spec.VolumeMode != v1.PersistentVolumeFilesystem {
		t.Errorf("%+v", pv)
	}
}

func TestInDirectory(t *testing.T) {
	for path, want := range map[string]bool{"/m/d": true, "/m": false, "/m/": false, "/m/a/b": false, "/mm/d": false, "/m/..": false, "/m/.": false, "/m//d": false} {
		if _, got := inDirectory("/m", path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func TestCapacityStep(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0G", 1: "500G", 500 * gib: "500G", 500*gib + 1: "1000G"} {
		if got := capacityStep(bytes); got != want {
			t.Errorf("%d: %s", bytes, got)
		}
	}
}

// Two that serve the same disk: the second is refused and told who has it, until the first has gone.
func TestLocks(t *testing.T) {
	dir := t.TempDir()
	a, b := newLocks(dir, "process 1"), newLocks(dir, "process 2")
	if err := errors.Join(a.take("wwn/1"), a.take("wwn/1")); err != nil {
		t.Fatal(err)
	}
	if err := b.take("wwn/1"); err == nil || !strings.Contains(err.Error(), "process 1") {
		t.Errorf("the second: %v", err)
	}
	if err := b.take("wwn/2"); err != nil {
		t.Error(err)
	}
	a.keep(map[string]bool{})
	if err := b.take("wwn/1"); err != nil {
		t.Errorf("after the first let go: %v", err)
	}
	if a.path("wwn/1") == a.path("../1") || strings.Contains(a.path("a/../../b")[len(dir)+1:], "/") {
		t.Error("a name leaves the directory")
	}
}

func TestCleanDeadlineGrows(t *testing.T) {
	if cleanDeadline(0) != 10*time.Minute || cleanDeadline(1024*gib) < 24*time.Hour {
		t.Error(cleanDeadline(0), cleanDeadline(1024*gib))
	}
}

// A disk that does not answer holds up nobody, is not asked twice, and is looked at when it answers.
func TestADiskThatDoesNotAnswer(t *testing.T) {
	defer func(was time.Duration) { lookWithin = was }(lookWithin)
	lookWithin = 10 * time.Millisecond
	d := &Discovery{wake: make(chan struct{}, 1), stuck: map[string]<-chan struct{}{}}
	answer, asked := make(chan struct{}), 0
	hang := func(*entry) { asked++; <-answer }
	for range 2 {
		e := &entry{look: "/m/d"}
		if d.look(e, hang); !errors.Is(e.problem, errNoAnswer) {
			t.Fatal(e.problem)
		}
	}
	close(answer)
	<-d.wake
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	e := &entry{look: "/m/d"}
	if d.look(e, func(e *entry) { e.disk = "1" }); e.problem != nil || e.disk != "1" {
		t.Errorf("%+v", e)
	}
}
