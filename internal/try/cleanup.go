package try

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/try/spec"
)

// cleanUpWithin bounds the end of a run.
const cleanUpWithin = time.Minute

// cleanUp ends the instance and looks at what the driver still has: what is left after every object was deleted, the
// driver has lost. It is reported as a step of its own, when there is something to report.
func (b *bench) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanUpWithin)
	defer cancel()
	s := &Step{Name: "clean-up", Title: "nothing is left in the driver", Began: time.Now(), Outcome: Passed}
	b.mu.Lock()
	b.step = s
	b.mu.Unlock()
	if b.in != nil {
		<-b.startingIn // until then its child is being made
		if err := b.in.down(ctx); err != nil && b.inReady {
			s.Notes = append(s.Notes, "berth down: "+err.Error())
		}
	}
	interrupted := b.report.Ended != ""
	for _, e := range b.ledger.left() {
		switch {
		case slices.ContainsFunc(b.former, e.is):
			s.Notes = append(s.Notes, fmt.Sprintf("deleted %s, which a killed run had left", e))
		case !interrupted:
			s.Violations = append(s.Violations, spec.Violation{Rule: "driver/left-behind", Section: "Volume Lifecycle",
				Text: fmt.Sprintf("%s was made and never deleted, after everything that Kubernetes knew was deleted", e)})
		}
		if err := b.discard(ctx, e); err != nil {
			s.Notes = append(s.Notes, fmt.Sprintf("%s stays in the driver: %v", e, err))
		}
	}
	if id := b.listedAfterDelete(ctx); id != "" && !interrupted {
		s.Violations = append(s.Violations, b.checker.Add(stillThere(id, "ListVolumes still shows it"))...)
	}
	var own []string
	if b.in != nil {
		own = []string{b.in.database()}
	}
	if left := mountsBelow(b.work, own...); len(left) > 0 && !interrupted {
		s.Violations = append(s.Violations, spec.Violation{Rule: "driver/mount-left", Section: "NodeUnpublishVolume",
			Text: "still mounted after everything was unmounted: " + strings.Join(left, ", ")})
	}
	b.mu.Lock()
	b.step = nil
	b.mu.Unlock()
	s.Seconds = time.Since(s.Began).Seconds()
	if s.broken() {
		s.Outcome = Failed
	}
	if s.broken() || len(s.Notes) > 0 {
		b.report.Steps = append(b.report.Steps, s)
		b.say.step(s)
		b.say.done(s)
	}
}

// listedAfterDelete finds a volume that the driver lists after its deletion was answered.
func (b *bench) listedAfterDelete(ctx context.Context) string {
	if !b.caps.HasController("LIST_VOLUMES") {
		return ""
	}
	token := ""
	for range 1000 {
		r, err := ask(ctx, b.ctl.ListVolumes, &csi.ListVolumesRequest{StartingToken: token})
		if err != nil {
			return ""
		}
		for _, e := range r.GetEntries() {
			if id := e.GetVolume().GetVolumeId(); b.ledger.deleted(id) {
				return id
			}
		}
		if token = r.GetNextToken(); token == "" {
			break
		}
	}
	return ""
}

// discard deletes what a driver still has of the bench.
func (b *bench) discard(ctx context.Context, e entry) error {
	switch e.kind {
	case "volume":
		if b.caps.HasController("PUBLISH_UNPUBLISH_VOLUME") {
			_, _ = ask(ctx, b.ctl.ControllerUnpublishVolume, &csi.ControllerUnpublishVolumeRequest{VolumeId: e.id, NodeId: b.nodeID, Secrets: b.o.Secrets})
		}
		return b.deleteVolume(ctx, e.id)
	case "snapshot":
		_, err := ask(ctx, b.ctl.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: e.id, Secrets: b.o.Secrets})
		return err
	case "group":
		_, err := ask(ctx, b.group.DeleteVolumeGroupSnapshot, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: e.id, SnapshotIds: e.members, Secrets: b.o.Secrets})
		return err
	}
	return nil
}

func mountsBelow(dir string, but ...string) (paths []string) {
	mounts, err := mountpoint.List()
	if err != nil {
		return nil
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Path, dir+"/") && !slices.Contains(but, m.Path) {
			paths = append(paths, m.Path)
		}
	}
	return paths
}

// detachMount takes the topmost mount at path away, also one that is in use: what uses it is the bench's own.
//
// boundary: held by the caller.
func detachMount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}
