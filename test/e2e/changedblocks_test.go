package e2e

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	"k8s.io/client-go/tools/clientcmd"
)

// emitted collects what the official client library hands on.
type emitted struct {
	ranges []extent
	first  time.Duration
	began  time.Time
}

type extent struct{ offset, size int64 }

func (e *emitted) SnapshotMetadataIteratorRecord(_ int, m iterator.IteratorMetadata) error {
	if e.first == 0 {
		e.first = time.Since(e.began)
	}
	for _, b := range m.BlockMetadata {
		e.ranges = append(e.ranges, extent{b.ByteOffset, b.SizeBytes})
	}
	return nil
}

func (e *emitted) SnapshotMetadataIteratorDone(int) error { return nil }

// A backup program asks, with the official client library, which blocks a snapshot holds and which have changed since
// the one before: those, applied to the earlier content, give the later one.
func TestChangedBlocks(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("raw", "64Mi", "volumeMode: Block") + `
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - {name: app, image: busybox, volumeDevices: [{name: data, devicePath: /dev/data}]}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: raw}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: backup}
rules: [{apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshots], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: backup}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: backup}
subjects: [{kind: ServiceAccount, name: default}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: stranger}
`)
	dev, err := os.OpenFile(paths(s, s.ready("app"))["data"], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	write := func(offset int64, size int, with byte) {
		t.Helper()
		if _, err := dev.WriteAt(bytes.Repeat([]byte{with}, size), offset); err != nil {
			t.Fatal(err)
		}
		if err := dev.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	content := func() []byte {
		t.Helper()
		b, err := io.ReadAll(io.NewSectionReader(dev, 0, 64<<20))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	snapshot := func(name string) {
		t.Helper()
		s.apply("apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: " + name + "}\nspec: {source: {persistentVolumeClaimName: raw}}\n")
		s.kubectl("wait", "volumesnapshot/"+name, "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s")
	}

	write(0, 1<<20, 'a')
	write(32<<20, 8192, 'b')
	first := content()
	snapshot("first")
	places := []int64{0, 4096, 12288, 1 << 20, 20 << 20, 32<<20 + 4096, 64<<20 - 4096}
	for i, p := range places {
		write(p, 4096, byte('A'+i))
	}
	second := content()
	snapshot("second")

	allocated, err := s.blocks("second", "", "default")
	if err != nil {
		t.Fatal(err)
	}
	rest := slices.Clone(second)
	for _, r := range allocated.ranges {
		clear(rest[r.offset : r.offset+r.size])
	}
	if len(bytes.TrimLeft(rest, "\x00")) > 0 {
		t.Errorf("there is data outside of what is said to be allocated: %v", allocated.ranges)
	}

	delta, err := s.blocks("second", "first", "default")
	if err != nil {
		t.Fatal(err)
	}
	var told int64
	for _, r := range delta.ranges {
		copy(first[r.offset:], second[r.offset:r.offset+r.size])
		told += r.size
	}
	if !bytes.Equal(first, second) {
		t.Errorf("the earlier content with the changes is not the later one: %v", delta.ranges)
	}
	if want := int64(len(places)) * 4096; told != want {
		t.Errorf("%d bytes are told to have changed, %d have: %v", told, want, delta.ranges)
	}
	t.Logf("first message of the delta after %s, token and TLS included", delta.first)

	if _, err := s.blocks("second", "", "stranger"); err == nil || !strings.Contains(err.Error(), "may not get volumesnapshots") {
		t.Errorf("a stranger was answered: %v", err)
	}
	if _, err := s.blocks("second", "second", "default"); err != nil {
		t.Errorf("a snapshot compared with itself: %v", err)
	}
	if _, err := s.blocks("first", "second", "default"); err == nil {
		t.Error("a base that is newer than the target was accepted")
	}
}

// blocks asks as a backup program does that runs under a service account: since "" for all that holds data.
func (s *story) blocks(snapshot, since, account string) (*emitted, error) {
	s.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.in.Dir, "kubeconfig"))
	if err != nil {
		s.Fatal(err)
	}
	clients, err := iterator.BuildClients(config)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	e := &emitted{began: time.Now()}
	return e, iterator.GetSnapshotMetadata(ctx, iterator.Args{Clients: clients, Emitter: e, Namespace: s.ns,
		SnapshotName: snapshot, PrevSnapshotName: since, SANamespace: s.ns, SAName: account})
}
