package provision

import (
	"context"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/trace"
)

// For a driver whose list of volumes gives their names (Driver.NameIsID), this replaces the finalizer: a volume "pvc-<uid>" of which no
// PersistentVolume, no claim of that uid and no attempt under way tells was left by a process that died between
// CreateVolume and the PersistentVolume, and is deleted. It runs when the driver is added, and when a claim went away
// unbound.

func (m *Manager) newSweeps() {
	q := newQueue("provision-leftovers")
	m.sweeps = q
	m.sweepRun = func(ctx context.Context) { work(ctx, q, 1, m.sweepDriver) }
}

// sweep asks for a driver's volumes to be compared with the API.
func (m *Manager) sweep(driver string) {
	if r := m.role(driver); r != nil && r.driver.NameIsID {
		m.sweeps.Add(driver)
	}
}

func (m *Manager) sweepDriver(ctx context.Context, driver string) error {
	r := m.role(driver)
	if r == nil || !r.ready() || !r.listsByName {
		return nil // it asks again when it is there
	}
	held, err := r.list(ctx)
	if err != nil {
		return fmt.Errorf("list the volumes of driver %s: %w", driver, err)
	}
	for _, name := range held {
		uid, ours := strings.CutPrefix(name, "pvc-")
		if !ours {
			continue
		}
		told, err := m.told(ctx, types.UID(uid))
		if err != nil {
			return err
		}
		if told {
			continue
		}
		m.opts.Log.Info("deleting a volume that no claim and no PersistentVolume tells of", "driver", driver, "volume", name)
		if err := r.delete(ctx, name); err != nil {
			return fmt.Errorf("delete leftover volume %s of driver %s: %w", name, driver, err)
		}
		m.opts.Trace.Record(trace.Entry{Step: trace.Deleted, State: trace.Done, Volume: name,
			Detail: "left over by an interrupted creation: neither a claim nor a PersistentVolume told of it"})
		r.capacity.changed()
	}
	return nil
}

// told says whether something tells of the volume made for the claim of this uid.
func (m *Manager) told(ctx context.Context, uid types.UID) (bool, error) {
	if _, underWay := m.intents.attemptOf(uid); underWay {
		return true, nil
	}
	if c, _ := m.claimIndex.ByIndex(uidIndex, string(uid)); len(c) > 0 {
		return true, nil
	}
	if _, err := m.volumes.Get(volumeName(uid)); err == nil {
		return true, nil
	}
	// The caches may lag: the API decides before anything is deleted.
	_, err := m.opts.Client.CoreV1().PersistentVolumes().Get(ctx, volumeName(uid), metav1.GetOptions{})
	if err == nil {
		return true, nil
	}
	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("look for volume %s: %w", volumeName(uid), err)
	}
	claims, err := m.opts.Client.CoreV1().PersistentVolumeClaims(v1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, fmt.Errorf("look for the claim of volume %s: %w", volumeName(uid), err)
	}
	for i := range claims.Items {
		if claims.Items[i].UID == uid {
			return true, nil
		}
	}
	return false, nil
}

// delete asks the driver to delete a volume. boundary: held by the caller: the connection's interceptor (bounded).
func (r *role) delete(ctx context.Context, id string) error {
	_, err := csi.NewControllerClient(r.conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

// list returns the ids of all volumes that the driver holds.
func (r *role) list(ctx context.Context) (ids []string, err error) {
	for token := ""; ; {
		page, err := csi.NewControllerClient(r.conn).ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: token})
		if err != nil {
			return nil, err
		}
		for _, e := range page.GetEntries() {
			ids = append(ids, e.GetVolume().GetVolumeId())
		}
		if next := page.GetNextToken(); next == "" || next == token {
			return ids, nil
		} else {
			token = next
		}
	}
}
