package csi

import (
	"errors"
	"os"
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
	"berth.io/berth/internal/plugin/fsgroup"
)

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

// A claim that the pod takes read-only, and an inline volume that is: the driver is told, and nobody changes the owner.
func TestReadOnlyPublications(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		change func(*plugin.Volume)
		want   bool
	}{
		"a claim, writable":  {func(*plugin.Volume) {}, false},
		"a claim, read-only": {func(v *plugin.Volume) { v.ReadOnly = true }, true},
		"inline, read-only": {func(v *plugin.Volume) {
			v.PV, v.ReadOnly = nil, true
			v.Source = &v1.Volume{Name: "data", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: testDriver, ReadOnly: &yes}}}
		}, true},
		"raw, read-only": {func(v *plugin.Volume) { asBlock(v); v.ReadOnly = true }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, allCapabilities...)
			p, _ := newPlugin(t, s, DriversOptions{}, csiDriver(func(d *storagev1.CSIDriverSpec) {
				d.VolumeLifecycleModes = append(d.VolumeLifecycleModes, storagev1.VolumeLifecycleEphemeral)
			}))
			v := testVolume(c.change)
			if _, err := p.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil && v.Mode() != v1.PersistentVolumeBlock { // whose bind mount needs root
				t.Fatal(err)
			}
			if got := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest).Readonly; got != c.want {
				t.Errorf("read-only %v", got)
			}
			_ = p.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: v.Pod.UID, SpecName: v.SpecName(), Mode: v.Mode()})
		})
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
			if got := fsgroup.Matches(published.Path, group, fsgroup.ReadWrite); got != c.applied {
				t.Errorf("applied: %v", got)
			}
			said := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest).VolumeCapability.GetMount().GetVolumeMountGroup()
			if (said != "") != (c.said != "") {
				t.Errorf("told the driver %q", said)
			}
			s.caps = append(s.caps, csipb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
			if err := p.drivers.Register(testDriver, s.socket); err != nil { // with what it can do now
				t.Fatal(err)
			}
			if err := p.Stage(t.Context(), plugin.StageRequest{Volume: v, FSGroup: &group}); err != nil {
				t.Fatal(err)
			}
			if staged := s.last["NodeStageVolume"].(*csipb.NodeStageVolumeRequest).VolumeCapability.GetMount().GetVolumeMountGroup(); staged != said {
				t.Errorf("published for group %q, staged for %q", said, staged)
			}
		})
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
