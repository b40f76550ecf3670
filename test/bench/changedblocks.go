package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	snapshotclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
)

const (
	wholeGiB   = 10
	places     = 1000
	placeBytes = 4096
)

// deltas measures how soon a backup program has the first message of what has changed between two snapshots of a raw volume that is full of
// data, asked through the service with the official client library: token, TLS and the checks of both are part of it. What is told is compared
// with what was written.
func deltas(ctx context.Context, runs int, t *table) error {
	if runs == 0 {
		return nil
	}
	s, err := newSubject("berth", "--pool-size", "48Gi")
	if err != nil {
		return err
	}
	defer s.remove()
	if err := s.start(ctx); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.in.Dir, "kubeconfig"))
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := snapshotclient.NewForConfig(config)
	if err != nil {
		return err
	}
	changed, err := s.changedVolume(ctx, client)
	if err != nil {
		return err
	}
	if err := s.mayRead(ctx, "default"); err != nil {
		return err
	}
	clients, err := iterator.BuildClients(config)
	if err != nil {
		return err
	}
	var first, all []time.Duration
	for range runs {
		e := &told{began: time.Now(), of: changed}
		err := iterator.GetSnapshotMetadata(ctx, iterator.Args{Clients: clients, Emitter: e, Namespace: "default",
			SnapshotName: "after", PrevSnapshotName: "before", SANamespace: "default", SAName: "default"})
		if err != nil {
			return fmt.Errorf("ask for the delta: %w", err)
		}
		if e.bytes != places*placeBytes {
			return fmt.Errorf("%d bytes are told to have changed, %d have", e.bytes, places*placeBytes)
		}
		first, all = append(first, e.first), append(all, time.Since(e.began))
	}
	t.durations(s.name, fmt.Sprintf("delta of two snapshots of %d GiB, %d changed places, by the service: first message, %d runs", wholeGiB, places, runs), first)
	t.durations(s.name, "– the whole, exact", all)
	for _, name := range []string{"after", "before"} {
		if err := client.SnapshotV1().VolumeSnapshots("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	if err := s.gone(ctx, "raw"); err != nil {
		return err
	}
	return s.down(ctx)
}

// changedVolume makes a raw volume full of data, and its snapshots before and after so many places of it are written. It returns these.
func (s *subject) changedVolume(ctx context.Context, client snapshotclient.Interface) (map[int64]bool, error) {
	c := claim("raw", fmt.Sprint(wholeGiB, "Gi"))
	c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
	path, _, err := s.mounted(ctx, c)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s: filling a raw volume of %d GiB\n", s.name, wholeGiB)
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	piece := make([]byte, 8<<20)
	for i := range piece {
		piece[i] = byte(i) | 1
	}
	for at := int64(0); at < wholeGiB<<30; at += int64(len(piece)) {
		if _, err := device.WriteAt(piece, at); err != nil {
			return nil, err
		}
		if at%(1<<30) == 0 {
			if err := device.Sync(); err != nil { // what is dirty is not the snapshot's to wait for
				return nil, err
			}
		}
	}
	if err := device.Sync(); err != nil {
		return nil, err
	}
	if err := s.snapshot(ctx, client, "before", "raw"); err != nil {
		return nil, err
	}
	changed := map[int64]bool{}
	for len(changed) < places {
		at := rand.Int64N(wholeGiB<<30/placeBytes) * placeBytes
		if changed[at] {
			continue
		}
		changed[at] = true
		if _, err := device.WriteAt(piece[1:placeBytes+1], at); err != nil {
			return nil, err
		}
	}
	if err := device.Sync(); err != nil {
		return nil, err
	}
	return changed, s.snapshot(ctx, client, "after", "raw")
}

// mayRead lets an account of namespace default read what the service asks for on its behalf.
func (s *subject) mayRead(ctx context.Context, account string) error {
	_, err := s.client.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "backup"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"snapshot.storage.k8s.io"}, Resources: []string{"volumesnapshots"}, Verbs: []string{"get", "list"}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = s.client.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "backup"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "backup"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account}}}, metav1.CreateOptions{})
	return err
}

// told is what a backup program is told.
type told struct {
	began time.Time
	first time.Duration
	bytes int64
	of    map[int64]bool // where something was written
}

// SnapshotMetadataIteratorRecord implements iterator.IteratorEmitter.
func (e *told) SnapshotMetadataIteratorRecord(_ int, m iterator.IteratorMetadata) error {
	if e.first == 0 {
		e.first = time.Since(e.began)
	}
	for _, b := range m.BlockMetadata {
		for at := b.ByteOffset; at < b.ByteOffset+b.SizeBytes; at += placeBytes {
			if !e.of[at] {
				return fmt.Errorf("the block at %d is told to have changed, and was not written", at)
			}
		}
		e.bytes += b.SizeBytes
	}
	return nil
}

// SnapshotMetadataIteratorDone implements iterator.IteratorEmitter.
func (e *told) SnapshotMetadataIteratorDone(int) error { return nil }
