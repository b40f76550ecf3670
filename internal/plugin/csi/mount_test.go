package csi

import (
	"context"
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
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

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

// Secrets and tokens reach the driver and nobody else.
func TestSecretsAndTokens(t *testing.T) {
	s := serve(t, allCapabilities...)
	seconds := int64(600)
	p, client := newPlugin(t, s, DriversOptions{}, csiDriver(func(d *storagev1.CSIDriverSpec) {
		d.TokenRequests = []storagev1.TokenRequest{{Audience: "vault", ExpirationSeconds: &seconds}}
	}), &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "creds", Namespace: "sys"}, Data: map[string][]byte{"k": []byte("hidden")}})
	requests := 0
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		requests++
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: "token", ExpirationTimestamp: metav1.NewTime(time.Now().Add(10 * time.Minute)),
		}}, nil
	})
	ref := &v1.SecretReference{Name: "creds", Namespace: "sys"}
	v := testVolume(func(v *plugin.Volume) {
		v.PV.Spec.CSI.NodeStageSecretRef, v.PV.Spec.CSI.NodePublishSecretRef, v.PV.Spec.CSI.NodeExpandSecretRef = ref, ref, ref
	})
	if err := p.Stage(t.Context(), plugin.StageRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Expand(t.Context(), plugin.ExpandRequest{Volume: v, NewSize: 2 << 30}); err != nil {
		t.Fatal(err)
	}
	publish := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest)
	if s.last["NodeStageVolume"].(*csipb.NodeStageVolumeRequest).Secrets["k"] != "hidden" || publish.Secrets["k"] != "hidden" ||
		s.last["NodeExpandVolume"].(*csipb.NodeExpandVolumeRequest).Secrets["k"] != "hidden" {
		t.Error("the secrets did not reach the driver")
	}
	if !strings.Contains(publish.VolumeContext[tokensAttribute], `"vault":{"token":"token"`) {
		t.Errorf("tokens: %q", publish.VolumeContext[tokensAttribute])
	}
	if requests != 1 {
		t.Errorf("%d token requests for two publishes", requests)
	}
	v.PV.Spec.CSI.NodeStageSecretRef = &v1.SecretReference{Name: "none", Namespace: "sys"}
	err := p.Stage(t.Context(), plugin.StageRequest{Volume: v})
	if err == nil || !strings.Contains(err.Error(), "nodeStageSecretRef sys/none") {
		t.Errorf("missing secret: %v", err)
	}
}

// An inline volume has a handle made from its pod, is not staged, and needs a driver that says it serves such volumes.
func TestInline(t *testing.T) {
	s := serve(t, allCapabilities...)
	inlineVolume := func() *plugin.Volume {
		v := testVolume()
		v.PV, v.Source = nil, &v1.Volume{Name: "data", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: testDriver}}}
		return v
	}
	p, _ := newPlugin(t, s, DriversOptions{}, csiDriver())
	if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: inlineVolume()}); err == nil || !strings.Contains(err.Error(), "does not serve Ephemeral") {
		t.Errorf("error: %v", err)
	}
	p, _ = newPlugin(t, s, DriversOptions{}, csiDriver(func(d *storagev1.CSIDriverSpec) {
		yes := true
		d.PodInfoOnMount, d.VolumeLifecycleModes = &yes, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}
	}))
	if staged, _ := p.Staged(inlineVolume()); staged {
		t.Error("staged")
	}
	if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: inlineVolume()}); err != nil {
		t.Fatal(err)
	}
	publish := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest)
	if !strings.HasPrefix(publish.VolumeId, "csi-") || len(publish.VolumeId) != 68 || publish.VolumeContext["csi.storage.k8s.io/ephemeral"] != "true" || publish.StagingTargetPath != "" {
		t.Errorf("request %v", publish)
	}
	r, err := p.Reconstruct("pod-uid", "data", v1.PersistentVolumeFilesystem)
	name, _ := p.UniqueName(inlineVolume())
	if err != nil || r.Name != name || r.GlobalPath != "" || r.Attachable {
		t.Errorf("reconstructed %+v, %v", r, err)
	}
	if err := p.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "pod-uid", SpecName: "data"}); err != nil {
		t.Error(err)
	}
}

// Access modes as the driver's capabilities let them be said.
func TestAccessModes(t *testing.T) {
	for _, c := range []struct {
		multi bool
		mode  v1.PersistentVolumeAccessMode
		want  csipb.VolumeCapability_AccessMode_Mode
	}{
		{false, v1.ReadWriteOnce, csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		{false, v1.ReadWriteOncePod, csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		{true, v1.ReadWriteOnce, csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		{true, v1.ReadWriteOncePod, csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER},
		{true, v1.ReadOnlyMany, csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY},
		{false, v1.ReadWriteMany, csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER},
	} {
		if got := (capabilities{singleNodeMultiWriter: c.multi}).accessMode(c.mode); got != c.want {
			t.Errorf("%s, multi writer %v: %s, want %s", c.mode, c.multi, got, c.want)
		}
	}
}

// fsGroup: by the driver's policy, or by the driver itself.
func TestFSGroup(t *testing.T) {
	group := int64(os.Getgid()) // a group that needs no root
	for name, c := range map[string]struct {
		policy  storagev1.FSGroupPolicy
		caps    []csipb.NodeServiceCapability_RPC_Type
		change  func(*plugin.Volume)
		applied bool
		said    string
	}{
		"read-write-once with a filesystem type": {policy: storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, applied: true},
		"shared volume":                          {policy: storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, change: func(v *plugin.Volume) { v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteMany} }},
		"no filesystem type":                     {policy: storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, change: func(v *plugin.Volume) { v.PV.Spec.CSI.FSType = "" }},
		"policy None":                            {policy: storagev1.NoneFSGroupPolicy},
		"policy File":                            {policy: storagev1.FileFSGroupPolicy, change: func(v *plugin.Volume) { v.PV.Spec.CSI.FSType = "" }, applied: true},
		"read-only":                              {policy: storagev1.FileFSGroupPolicy, change: func(v *plugin.Volume) { v.ReadOnly = true }},
		"the driver does it": {policy: storagev1.FileFSGroupPolicy, said: "g",
			caps: []csipb.NodeServiceCapability_RPC_Type{csipb.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP}},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, c.caps...)
			p, _ := newPlugin(t, s, DriversOptions{}, csiDriver(func(d *storagev1.CSIDriverSpec) { d.FSGroupPolicy = &c.policy }))
			v := testVolume()
			if c.change != nil {
				c.change(v)
			}
			published, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: v, FSGroup: &group})
			if err != nil {
				t.Fatal(err)
			}
			if got := rootMatches(published.Path, group); got != c.applied {
				t.Errorf("applied: %v", got)
			}
			said := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest).VolumeCapability.GetMount().GetVolumeMountGroup()
			if (said != "") != (c.said != "") {
				t.Errorf("told the driver %q", said)
			}
		})
	}
}

// A chown that is cut short leaves the root for last, so that OnRootMismatch starts again.
func TestFSGroupCutShort(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := changeGroup(ctx, dir, int64(os.Getgid())); !errors.Is(err, context.Canceled) || rootMatches(dir, int64(os.Getgid())) {
		t.Errorf("error %v", err)
	}
}

func TestExpandErrors(t *testing.T) {
	s := serve(t, allCapabilities...)
	p, _ := newPlugin(t, s, DriversOptions{}, csiDriver())
	for code, want := range map[codes.Code]error{
		codes.FailedPrecondition: plugin.ErrExpandInUse,
		codes.OutOfRange:         plugin.ErrExpandInfeasible,
		codes.Unavailable:        plugin.ErrUncertain,
	} {
		s.fail("NodeExpandVolume", code)
		if err := p.Expand(t.Context(), plugin.ExpandRequest{Volume: testVolume(), NewSize: 1}); !errors.Is(err, want) {
			t.Errorf("%s: %v", code, err)
		}
	}
	p, _ = newPlugin(t, serve(t), DriversOptions{}, csiDriver())
	if err := p.Expand(t.Context(), plugin.ExpandRequest{Volume: testVolume(), NewSize: 1}); !errors.Is(err, plugin.ErrExpandNotServed) {
		t.Errorf("without the capability: %v", err)
	}
}

// A crash leaves directories without volume data: they are listed without a name, and Unstage removes them with no driver.
func TestStagedWithoutVolumeData(t *testing.T) {
	p, _ := newPlugin(t, nil, DriversOptions{})
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
