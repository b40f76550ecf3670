package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/api/resource"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/host/filesystem"
)

// An inline volume is written in a pod and lives as long as it: NodePublishVolume is its first call and NodeUnpublishVolume
// its last. Kubernetes says in the volume's context that it is one, and makes up its id.
//
// It is a volume of the backend like any other, with a name made from that id, so it is counted like any other. Each step
// can be repeated, and the note of it (inlinenotes.go) stands from before the first effect until after the last.

// inlinePrefix begins the backend's names of inline volumes; no other volume may have such a name.
const inlinePrefix = "inline/"

// InlineName is the name by which the backend knows the inline volume with a handle.
func InlineName(handle string) string { return inlinePrefix + handle }

const (
	contextEphemeral = sidecarPrefix + "ephemeral"
	attributeSize    = "size"
	// DefaultInlineBytes is the size of an inline volume that names none.
	DefaultInlineBytes = int64(1) << 30
)

func isInline(volumeContext map[string]string) bool { return volumeContext[contextEphemeral] == "true" }

// inlineSize reads the attributes that a pod gives its inline volume.
func inlineSize(attributes map[string]string) (int64, error) {
	size := DefaultInlineBytes
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		value := attributes[name]
		if strings.HasPrefix(name, sidecarPrefix) {
			continue
		}
		if name != attributeSize {
			return 0, invalid("volume_context: unknown attribute %q of an inline volume (known: %s)", name, attributeSize)
		}
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return 0, invalid("volume_context: %s %q is no size: write it as 500Mi or 10Gi", attributeSize, value)
		}
		size = q.Value() // rounds up, and holds on to the greatest number there is
		if size <= 0 || q.CmpInt64(size) != 0 {
			return 0, invalid("volume_context: %s %q is no number of bytes that a volume can have", attributeSize, value)
		}
	}
	return size, nil
}

// publishInline makes an inline volume and everything up to its place.
func (d *Driver) publishInline(ctx context.Context, r *csi.NodePublishVolumeRequest, u use) error {
	if !u.mount {
		return invalid("volume_capability: an inline volume is a filesystem, not a block device")
	}
	size, err := inlineSize(r.GetVolumeContext())
	if err != nil {
		return err
	}
	note := inlineNote{
		Handle: r.GetVolumeId(), Target: filepath.Clean(r.GetTargetPath()), SizeBytes: size, FSType: cmp.Or(u.fsType, filesystem.Default),
	}
	h, err := d.holds.Acquire(ctx, note.Handle, "NodePublishVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	if _, err := d.o.Backend.Get(ctx, note.Handle); err == nil {
		return invalid("volume_id %s is that of a persistent volume, and not of an inline one", note.Handle)
	}
	have, noted := d.inline.get(note.Handle)
	if noted && have != note {
		return fmt.Errorf("%w: inline volume %s is %s of %d bytes at %s, and %s of %d bytes at %s is asked for", backend.ErrExists,
			note.Handle, have.FSType, have.SizeBytes, have.Target, note.FSType, note.SizeBytes, note.Target)
	}
	if !noted {
		if err := d.inline.put(note); err != nil {
			return err
		}
	}
	err = d.makeInline(ctx, h, note, u)
	if err != nil && !noted && ctx.Err() == nil {
		// The pod waits, and may never come to be: what was made for nothing must not take space from others.
		h.Step("taking away what was made of it")
		if gone := d.removeInline(ctx, note); gone != nil {
			d.o.Log.Warn("what is left of an inline volume is taken away when it is unpublished", slog.String("volume", note.Handle), slog.Any("error", gone))
		}
	}
	return err
}

func (d *Driver) makeInline(ctx context.Context, h *hold.Hold, note inlineNote, u use) error {
	h.Step("making its volume")
	v, err := d.o.Backend.Create(ctx, backend.CreateRequest{Name: InlineName(note.Handle), RequiredBytes: note.SizeBytes, FSType: note.FSType})
	if err != nil {
		return err
	}
	staging := d.inline.staging(note.Handle)
	h.Step("staging its volume " + v.ID)
	if err := d.o.Backend.Stage(ctx, backend.StageRequest{ID: v.ID, Path: staging, FSType: note.FSType, MountOptions: u.options}); err != nil {
		return err
	}
	h.Step("publishing its volume " + v.ID)
	return d.publish(ctx, u, backend.PublishRequest{ID: v.ID, StagingPath: staging, Target: note.Target})
}

// unpublishInline takes an inline volume away, with its data.
func (d *Driver) unpublishInline(ctx context.Context, handle, target string) error {
	h, err := d.holds.Acquire(ctx, handle, "NodeUnpublishVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	note, ok := d.inline.get(handle)
	if !ok || note.Target != target {
		// Gone meanwhile; or a place at which it never was, and the volume stays.
		return d.o.Backend.Unpublish(ctx, handle, target)
	}
	h.Step("taking it away")
	return d.removeInline(ctx, note)
}

// removeInline can begin anywhere: each of its steps may have been done, or never have been needed.
func (d *Driver) removeInline(ctx context.Context, note inlineNote) error {
	id, err := d.inlineID(ctx, note.Handle)
	if err != nil && !errors.Is(err, backend.ErrNotFound) {
		return err
	}
	if err := d.o.Backend.Unpublish(ctx, cmp.Or(id, note.Handle), note.Target); err != nil {
		return err
	}
	if id != "" {
		if err := d.o.Backend.Unstage(ctx, id, d.inline.staging(note.Handle)); err != nil {
			return err
		}
		if err := d.o.Backend.Delete(ctx, id); err != nil {
			return err
		}
	}
	return d.inline.remove(note.Handle)
}

// inlineID finds the backend's id of an inline volume.
func (d *Driver) inlineID(ctx context.Context, handle string) (string, error) {
	volumes, err := d.o.Backend.List(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range volumes {
		if v.Name == InlineName(handle) {
			return v.ID, nil
		}
	}
	return "", fmt.Errorf("%w: inline volume %s", backend.ErrNotFound, handle)
}

// resolve returns the backend's id of a volume that the caller knows by id.
func (d *Driver) resolve(ctx context.Context, id string) (string, error) {
	if !d.inline.has(id) {
		return id, nil
	}
	return d.inlineID(ctx, id)
}

// clearing bounds clearInline.
const clearing = time.Minute

// clearInline takes away the inline volumes of which nobody will: those whose pod's directory has gone, which the caller has to
// keep as long as it remembers the volume, and those without a note. What cannot be taken away stays for the next start.
func (d *Driver) clearInline(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clearing)
	defer cancel()
	for _, note := range d.inline.all() {
		if _, err := os.Stat(filepath.Dir(note.Target)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		d.o.Log.Info("an inline volume's pod has gone: the volume goes, too", slog.String("volume", note.Handle), slog.String("target", note.Target))
		if err := d.removeInline(ctx, note); err != nil {
			d.o.Log.Warn("an inline volume whose pod has gone cannot be taken away", slog.String("volume", note.Handle), slog.Any("error", err))
		}
	}
	volumes, err := d.o.Backend.List(ctx)
	if err != nil {
		d.o.Log.Warn("inline volumes cannot be listed", slog.Any("error", err))
		return
	}
	for _, v := range volumes {
		handle, is := strings.CutPrefix(v.Name, inlinePrefix)
		if !is || d.inline.has(handle) {
			continue
		}
		// In use, it is refused, and stays.
		if err := d.o.Backend.Delete(ctx, v.ID); err != nil {
			d.o.Log.Warn("an inline volume that nobody knows cannot be taken away", slog.String("volume", v.ID), slog.Any("error", err))
		}
	}
}
