package csi

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/plugin"
)

// files lists what is below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

// A filesystem is staged, published, read back from the disk by a new process, unpublished and unstaged; nothing of it stays.
func TestFilesystem(t *testing.T) {
	s := serve(t, allCapabilities...)
	p, _ := newPlugin(t, s, DriversOptions{}, csiDriver(func(d *storagev1.CSIDriverSpec) {
		yes := true
		d.PodInfoOnMount = &yes
	}))
	v := testVolume()
	ctx := t.Context()
	if err := p.Stage(ctx, plugin.StageRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	staging := p.GlobalPath(v)
	published, err := p.Publish(ctx, plugin.PublishRequest{Volume: v})
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(p.paths.root, "pods/pod-uid/volumes/kubernetes.io~csi/pv-1/mount")
	if published.Path != target {
		t.Errorf("published at %s, want %s", published.Path, target)
	}
	stage := s.last["NodeStageVolume"].(*csipb.NodeStageVolumeRequest)
	publish := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest)
	if stage.VolumeId != "handle/1" || stage.StagingTargetPath != staging || publish.StagingTargetPath != staging || publish.TargetPath != target {
		t.Errorf("requests:\n%v\n%v", stage, publish)
	}
	if m := publish.VolumeCapability.GetMount(); m.GetFsType() != "ext4" || !slices.Equal(m.GetMountFlags(), []string{"noatime"}) {
		t.Errorf("capability %v", publish.VolumeCapability)
	}
	if c := publish.VolumeContext; c["a"] != "b" || c["csi.storage.k8s.io/pod.name"] != "pod-1" || c["csi.storage.k8s.io/ephemeral"] != "false" {
		t.Errorf("volume context %v", c)
	}
	if len(v.PV.Spec.CSI.VolumeAttributes) != 1 {
		t.Error("the informer's object was written into")
	}
	var data map[string]string
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(target), volumeDataFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &data); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"specVolID": "pv-1", "volumeHandle": "handle/1", "driverName": testDriver, "nodeName": testNode,
		"attachmentID": attachmentName("handle/1", testDriver, testNode), "volumeLifecycleMode": "Persistent",
	}
	for k, x := range want {
		if data[k] != x {
			t.Errorf("vol_data.json: %s is %q, want %q", k, data[k], x)
		}
	}

	r, err := p.Reconstruct("pod-uid", "pv-1", v1.PersistentVolumeFilesystem)
	if err != nil {
		t.Fatal(err)
	}
	name, _ := p.UniqueName(v)
	if r.Name != name || name != "kubernetes.io/csi/"+testDriver+"^handle/1" || r.GlobalPath != staging || r.Path != target || r.Driver != testDriver || r.Attachable {
		t.Errorf("reconstructed %+v", r)
	}
	found, err := p.StagedVolumes()
	if err != nil || len(found) != 1 || found[0].Name != name || found[0].GlobalPath != staging {
		t.Errorf("staged %+v, %v", found, err)
	}

	if err := p.Unpublish(ctx, plugin.UnpublishRequest{PodUID: "pod-uid", SpecName: "pv-1", Mode: v1.PersistentVolumeFilesystem}); err != nil {
		t.Fatal(err)
	}
	if err := p.Unstage(ctx, plugin.UnstageRequest{Name: name, GlobalPath: staging}); err != nil {
		t.Fatal(err)
	}
	for _, f := range files(t, p.paths.root) {
		if strings.Contains(f, "pv-1") || strings.Contains(f, "vol_data") || strings.Contains(f, "globalmount") {
			t.Errorf("left: %s", f)
		}
	}
	if got, want := s.called(), []string{"NodeGetCapabilities", "NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"}; !slices.Equal(got, want) {
		t.Errorf("calls %q", got)
	}
	// Both again: there is nothing to do, and no driver is asked.
	if err := p.Unpublish(ctx, plugin.UnpublishRequest{PodUID: "pod-uid", SpecName: "pv-1"}); err != nil {
		t.Error(err)
	}
	if err := p.Unstage(ctx, plugin.UnstageRequest{Name: name, GlobalPath: staging}); err != nil {
		t.Error(err)
	}
}

// Codes after which the driver may still be at work leave everything in place; final ones leave nothing, unless the volume was
// published before.
func TestPublishFailure(t *testing.T) {
	for name, c := range map[string]struct {
		code      codes.Code
		again     bool
		uncertain bool
		stays     bool
	}{
		"invalid argument":            {codes.InvalidArgument, false, false, false},
		"internal":                    {codes.Internal, false, false, false},
		"aborted":                     {codes.Aborted, false, true, true},
		"unavailable":                 {codes.Unavailable, false, true, true},
		"resource exhausted":          {codes.ResourceExhausted, false, true, true},
		"deadline of the driver's":    {codes.DeadlineExceeded, false, true, true},
		"canceled":                    {codes.Canceled, false, true, true},
		"a republish that is refused": {codes.Internal, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, allCapabilities...)
			p, _ := newPlugin(t, s, DriversOptions{}, csiDriver())
			v := testVolume()
			target := p.paths.target(v.Pod.UID, "pv-1")
			if c.again {
				if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
					t.Fatal(err)
				}
			}
			s.fail("NodePublishVolume", c.code)
			_, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: v, Again: c.again})
			if err == nil || errors.Is(err, plugin.ErrUncertain) != c.uncertain {
				t.Errorf("error %v, uncertain %v", err, errors.Is(err, plugin.ErrUncertain))
			}
			_, statErr := os.Stat(filepath.Join(filepath.Dir(target), volumeDataFile))
			if stays := statErr == nil; stays != c.stays {
				t.Errorf("volume data stays: %v", stays)
			}
		})
	}
}

// A driver that hangs is given up after the deadline, in words; other drivers' calls are not held up.
func TestHangingDriver(t *testing.T) {
	s := serve(t, allCapabilities...)
	p, _ := newPlugin(t, s, DriversOptions{Timeout: 100 * time.Millisecond}, csiDriver())
	s.hangs["NodeStageVolume"] = true
	err := p.Stage(t.Context(), plugin.StageRequest{Volume: testVolume()})
	if !errors.Is(err, plugin.ErrUncertain) || err.Error() != "NodeStageVolume of driver test.example.com gave no answer for 100ms" {
		t.Errorf("error: %v", err)
	}
	if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: testVolume()}); err != nil {
		t.Error(err)
	}
}

// A driver that dies comes back on the same socket: the connection recovers by itself.
func TestDriverRestart(t *testing.T) {
	s := serve(t, allCapabilities...)
	p, _ := newPlugin(t, s, DriversOptions{}, csiDriver())
	if err := p.Stage(t.Context(), plugin.StageRequest{Volume: testVolume()}); err != nil {
		t.Fatal(err)
	}
	s.server.Stop()
	err := p.Stage(t.Context(), plugin.StageRequest{Volume: testVolume(), Again: true})
	if !errors.Is(err, plugin.ErrUncertain) || !strings.Contains(err.Error(), "can't be reached") {
		t.Errorf("error: %v", err)
	}
	_ = os.Remove(s.socket)
	s.listen(t)
	deadline := time.Now().Add(5 * time.Second)
	for err != nil && time.Now().Before(deadline) {
		err = p.Stage(t.Context(), plugin.StageRequest{Volume: testVolume(), Again: true})
	}
	if err != nil {
		t.Error(err)
	}
}

func TestNotRegistered(t *testing.T) {
	p, _ := newPlugin(t, nil, DriversOptions{}, csiDriver())
	err := p.Stage(t.Context(), plugin.StageRequest{Volume: testVolume()})
	if !errors.Is(err, plugin.ErrDriverMissing) || errors.Is(err, plugin.ErrUncertain) {
		t.Errorf("error: %v", err)
	}
	if err := p.drivers.Register("old.example.com", "/nowhere", "0.3.0"); err == nil {
		t.Error("a driver of CSI 0.3 was registered")
	}
}

// The publish context is that of the attachment which is there now; a volume that is not attached is refused.
func TestPublishContext(t *testing.T) {
	s := serve(t, allCapabilities...)
	va := &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: attachmentName("handle/1", testDriver, testNode), UID: "one"},
		Status:     storagev1.VolumeAttachmentStatus{Attached: true, AttachmentMetadata: map[string]string{"device": "one"}},
	}
	p, client := newPlugin(t, s, DriversOptions{}, va) // no CSIDriver object: attached
	ctx := t.Context()
	stagedWith := func() string {
		t.Helper()
		if err := p.Stage(ctx, plugin.StageRequest{Volume: testVolume()}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Publish(ctx, plugin.PublishRequest{Volume: testVolume()}); err != nil {
			t.Fatal(err)
		}
		stage := s.last["NodeStageVolume"].(*csipb.NodeStageVolumeRequest).PublishContext["device"]
		if publish := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest).PublishContext["device"]; publish != stage {
			t.Errorf("published with %q, staged with %q", publish, stage)
		}
		return stage
	}
	if got := stagedWith(); got != "one" {
		t.Errorf("staged with %q", got)
	}
	attachments := client.StorageV1().VolumeAttachments()
	if err := attachments.Delete(ctx, va.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stage(ctx, plugin.StageRequest{Volume: testVolume()}); err == nil {
		t.Error("staged without an attachment")
	}
	again := va.DeepCopy()
	again.UID, again.Status.AttachmentMetadata = "two", map[string]string{"device": "two"}
	if _, err := attachments.Create(ctx, again, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := stagedWith(); got != "two" {
		t.Errorf("staged with %q after it was attached again", got)
	}
}

// What is remembered of attachments ends with them, also for a driver that does not stage.
func TestAttachmentsAreForgotten(t *testing.T) {
	va := &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: attachmentName("handle/1", testDriver, testNode), UID: "one"},
		Status:     storagev1.VolumeAttachmentStatus{Attached: true},
	}
	p, client := newPlugin(t, serve(t), DriversOptions{}, va)
	if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: testVolume()}); err != nil {
		t.Fatal(err)
	}
	p.detach.gone(va)
	remembered := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.detach.mu.Lock()
		defer p.detach.mu.Unlock()
		return len(p.contexts) + len(p.detach.stale)
	}
	if n := remembered(); n != 2 {
		t.Fatalf("%d remembered", n)
	}
	if err := client.StorageV1().VolumeAttachments().Delete(t.Context(), va.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); remembered() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d remembered after the attachment", remembered())
		}
	}
}

// A crash leaves directories without volume data: they are listed without a name, and Unstage removes them with no driver.
func TestStagedWithoutVolumeData(t *testing.T) {
	p, _ := newPlugin(t, nil, DriversOptions{})
	// A data directory may have any name: what stands for something in a pattern, too.
	p.paths.root = filepath.Join(p.paths.root, "a[0]*?")
	empty := p.paths.staging(testDriver, "gone")
	if err := os.MkdirAll(empty, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(empty), ".vol_data.json-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{p.paths.blockData("pv-2"), p.paths.blockStaging("pv-2")} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	found, err := p.StagedVolumes()
	if err != nil || len(found) != 2 {
		t.Fatalf("found %v, %v", found, err)
	}
	for _, f := range found {
		if f.Name != "" {
			t.Errorf("named %s", f.Name)
		}
		if err := p.Unstage(t.Context(), plugin.UnstageRequest{GlobalPath: f.GlobalPath}); err != nil {
			t.Error(err)
		}
	}
	for _, f := range files(t, p.paths.root) {
		if strings.Contains(f, "globalmount") || strings.Contains(f, "vol_data") || strings.Contains(f, "pv-2") {
			t.Errorf("left: %s", f)
		}
	}
}

func FuzzVolumeData(f *testing.F) {
	f.Add([]byte(`{"driverName":"d","volumeHandle":"h"}`))
	f.Add([]byte(`{"driverName":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := parseVolumeData(data)
		if err == nil && (d.DriverName == "" || d.VolumeHandle == "") {
			t.Errorf("accepted %q", data)
		}
	})
}
