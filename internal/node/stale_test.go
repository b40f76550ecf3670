package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/node/holder"
)

// ofFormerLife is a pod that was Ready with the volumes at the paths.
func ofFormerLife(name string, volumes []v1.Volume, paths map[string]string) *v1.Pod {
	text, _ := json.Marshal(paths)
	p := testPod(name, func(p *v1.Pod) {
		p.Spec.Volumes = volumes
		p.Annotations = map[string]string{holder.PathsAnnotation: string(text)}
	})
	p.Status = holderStatus(p, mount.PodStatus{AllMounted: true}, nil, metav1.Now())
	return p
}

func claimed(name string) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
}

// After a restart of the machine nothing is mounted: before the node does anything, no pod says that its volumes are.
func TestStaleStatusIsTakenBack(t *testing.T) {
	dir := t.TempDir()
	at := func(pod, name string) map[string]string {
		path := filepath.Join(dir, "pods", "uid-"+pod, "volumes", "kubernetes.io~csi", name, "mount")
		if err := os.MkdirAll(path, 0o750); err != nil { // the directory is there, and would take what somebody writes
			t.Fatal(err)
		}
		return map[string]string{name: path}
	}
	stale := ofFormerLife("stale", []v1.Volume{claimed("data")}, at("stale", "data"))
	files := ofFormerLife("files", []v1.Volume{{Name: "tmp", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}, at("files", "tmp"))
	over := ofFormerLife("over", []v1.Volume{claimed("data")}, at("over", "data"))
	over.Status.Phase = v1.PodSucceeded
	elsewhere := ofFormerLife("elsewhere", []v1.Volume{claimed("data")}, at("elsewhere", "data"))
	elsewhere.Spec.NodeName = "node-2"
	waiting := testPod("waiting", func(p *v1.Pod) { p.Spec.Volumes = []v1.Volume{claimed("data")} })
	client := fake.NewClientset(stale, files, over, elsewhere, waiting)
	if err := UnreadyStale(t.Context(), client, "Node-1", dir); err != nil {
		t.Fatal(err)
	}
	now, err := client.CoreV1().Pods("ns").Get(t.Context(), "stale", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := conditionOf(&now.Status, v1.PodReady)
	if ready, _ := holder.Ready(now); ready || now.Status.Phase != v1.PodRunning || !strings.Contains(c.Message, `volume "data"`) ||
		now.Status.ContainerStatuses[0].Ready || conditionOf(&now.Status, v1.ContainersReady).Status != v1.ConditionFalse {
		t.Errorf("status %s", now.Status.String())
	}
	var written []string
	for _, a := range client.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok {
			written = append(written, p.GetName())
		}
	}
	if !slices.Equal(written, []string{"stale"}) {
		t.Errorf("written: %v", written)
	}
}

func TestWhatIsNotMounted(t *testing.T) {
	dir := t.TempDir()
	volumes := filepath.Join(dir, "pods", "uid-p", "volumes", "kubernetes.io~csi")
	devices := filepath.Join(dir, "pods", "uid-p", "volumeDevices", "kubernetes.io~csi")
	for _, d := range []string{filepath.Join(volumes, "pv", "mount"), devices} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	published := filepath.Join(dir, "published")
	if err := os.WriteFile(published, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"raw": published, "device": "/dev/null"} {
		if err := os.Symlink(to, filepath.Join(devices, link)); err != nil {
			t.Fatal(err)
		}
	}
	memory := v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}}
	secret := v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{}}}
	inline := v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{}}}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		volume  v1.Volume
		path    string
		mounts  []string
		missing bool
	}{
		"a mount point":                       {claimed("v"), volumes + "/pv/mount", []string{real + "/pods/uid-p/volumes/kubernetes.io~csi/pv/mount"}, false},
		"the directory alone":                 {claimed("v"), volumes + "/pv/mount", nil, true},
		"an inline volume's directory alone":  {inline, volumes + "/pv/mount", nil, true},
		"not even that":                       {claimed("v"), volumes + "/gone/mount", nil, true},
		"a claim whose path nobody knows":     {claimed("v"), "", nil, true},
		"a raw device, published":             {claimed("v"), devices + "/raw", []string{filepath.Join(real, "published")}, false},
		"a raw device, the file for it alone": {claimed("v"), devices + "/raw", nil, true},
		"a raw device of the host":            {claimed("v"), devices + "/device", nil, false},
		"a directory of the host":             {claimed("v"), "/srv/data", nil, false},
		"what somebody else wrote there":      {claimed("v"), dir + "/pods/uid-p/../uid-q/volumes/x", nil, false},
		"memory that is gone":                 {memory, volumes + "/pv/mount", nil, true},
		"files that are written anew":         {secret, volumes + "/pv/mount", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := ofFormerLife("p", []v1.Volume{c.volume}, map[string]string{"v": c.path})
			p.UID = types.UID("uid-p")
			got := notMounted(p, dir, func(path string) bool { return slices.Contains(c.mounts, path) })
			if (len(got) > 0) != c.missing {
				t.Errorf("missing %v", got)
			}
		})
	}
}
