package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/fsgroup"
	"berth.io/berth/internal/trace"
)

// Publish runs mount, and gives the files to the pod's fsGroup where the driver leaves that to the node.
func (p *Plugin) Publish(ctx context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	v := r.Volume
	if v.Pod == nil {
		return plugin.Published{}, fmt.Errorf("publish %s: no pod", v.SpecName())
	}
	if err := checkElement(string(v.Pod.UID)); err != nil {
		return plugin.Published{}, fmt.Errorf("pod UID: %w", err)
	}
	d, k, err := p.driverAndKey(ctx, v)
	if err != nil {
		return plugin.Published{}, err
	}
	target := p.paths.target(v.Pod.UID, d.name, v.SpecName())
	recordPath := p.paths.publishedRecord(v.Pod.UID, d.name, v.SpecName())
	record := volumeRecord{Name: uniqueName(d.name, k), SpecName: v.SpecName(), Persistent: v.PV != nil, Attachable: d.caps.Attach}
	mounted, err := mountpoint.Is(target)
	if err != nil {
		return plugin.Published{}, err
	}
	if !mounted {
		secrets, err := p.secrets(ctx, v)
		if err != nil {
			return plugin.Published{}, err
		}
		if err := p.notePublished(recordPath, record); err != nil {
			return plugin.Published{}, err
		}
		if err := boundary.Do("flexvolume/make-target", func() error { return os.MkdirAll(target, 0o750) }); err != nil {
			return plugin.Published{}, err
		}
		if err := p.mount(ctx, d, v, target, r.FSGroup, secrets); err != nil {
			return plugin.Published{}, p.notPublished(ctx, target, recordPath, r.Again, err)
		}
	}
	if r.FSGroup != nil && !readOnly(v) && d.caps.FSGroup && fsgroup.Due(target, *r.FSGroup, fsgroup.Policy(v.Pod), fsgroup.ReadWrite) {
		err := boundary.Do("flexvolume/apply-fs-group", func() error { return fsgroup.Apply(ctx, target, *r.FSGroup, fsgroup.ReadWrite) })
		if err != nil {
			// It is mounted, and useless to the pod: it must be unmounted in the end.
			return plugin.Published{}, fmt.Errorf("give %s to group %d: %w: %w", target, *r.FSGroup, err, plugin.ErrUncertain)
		}
	}
	record.Done = true
	return plugin.Published{Path: target}, p.notePublished(recordPath, record)
}

// mount calls the driver, or else binds what mountdevice has mounted.
func (p *Plugin) mount(ctx context.Context, d *driver, v *plugin.Volume, target string, fsGroup *int64, secrets map[string][]byte) error {
	text, err := mountOptions(v, fsGroup, secrets)
	if err != nil {
		return err
	}
	err = boundary.Do("flexvolume/mount", func() error {
		_, err := d.call(ctx, subjectOf(v), callMount, newRedactor(secrets), target, text)
		return err
	})
	if !errors.Is(err, errNotSupported) {
		return err
	}
	if !d.caps.Attach {
		return fmt.Errorf("FlexVolume driver %s supports neither mount nor attach: there is nothing to show the pod", d.name)
	}
	return boundary.Do("flexvolume/bind", func() error { return mountpoint.Bind(p.GlobalPath(v), target, readOnly(v), nil) })
}

// notPublished looks what a failure left: what is mounted, or may be, must be taken away in the end.
func (p *Plugin) notPublished(ctx context.Context, target, recordPath string, again bool, err error) error {
	if again || errors.Is(err, plugin.ErrUncertain) || ctx.Err() != nil {
		return err
	}
	if mounted, mountErr := mountpoint.Is(target); mounted || mountErr != nil {
		return fmt.Errorf("%w (%w: something is mounted at %s)", err, plugin.ErrUncertain, target)
	}
	if removeErr := p.removeTarget(target, recordPath); removeErr != nil {
		return fmt.Errorf("%w (%w: %w)", err, plugin.ErrUncertain, removeErr)
	}
	return err
}

// toleratedRefusals is how often a driver may refuse to take away what is not mounted any more, before it is not asked again.
const toleratedRefusals = 3

// Unpublish runs unmount and removes the directory. It needs the disk alone.
func (p *Plugin) Unpublish(ctx context.Context, r plugin.UnpublishRequest) error {
	name, err := p.driverOfPublished(r)
	if err != nil {
		return err
	}
	return p.unpublish(ctx, name, r)
}

func (p *Plugin) unpublish(ctx context.Context, name string, r plugin.UnpublishRequest) error {
	for _, element := range []string{string(r.PodUID), plugin.EscapeName(r.SpecName)} {
		if err := checkElement(element); err != nil {
			return err
		}
	}
	target := p.paths.target(r.PodUID, name, r.SpecName)
	recordPath := p.paths.publishedRecord(r.PodUID, name, r.SpecName)
	mounted, err := mountpoint.Is(target)
	if err != nil {
		return err
	}
	if !mounted { // a stat of a mount would wait for a server that is gone, and the driver can unmount without one
		if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
			return p.removeTarget(target, recordPath)
		}
	}
	of := subjectNamed(r.SpecName, trace.ObjectRef{UID: r.PodUID}, false)
	if r.Volume != nil {
		of = subjectOf(r.Volume)
	}
	d, err := p.table.get(ctx, name)
	switch {
	case err == nil:
		err = boundary.Do("flexvolume/unmount", func() error {
			a, err := d.call(ctx, of, callUnmount, redactor{}, target)
			p.warn(d, of, callUnmount, a)
			return err
		})
		if errors.Is(err, errNotSupported) {
			err = cleanUp(target)
		}
		err = p.tolerate(ctx, target, mounted, err)
	case p.givenUp(err):
		p.log.Warn("a FlexVolume is unmounted without its driver, which is gone: what the driver has beside the mount stays", "path", target, "driver", name, "err", err)
		err = cleanUp(target)
	}
	if err != nil {
		return err
	}
	if mounted, err := mountpoint.Is(target); mounted || err != nil {
		return errors.Join(fmt.Errorf("FlexVolume driver %s says that it has unmounted %s, which is still a mount point", name, target), err)
	}
	return p.removeTarget(target, recordPath)
}

// tolerate goes on after a driver has failed several times to unmount what was not mounted: after a crash between its unmount and
// our note of it, many a driver fails because nothing is mounted, for ever; so does one that rots in all that it does. One that
// fails while it has something to undo beside the mount has had its tries.
func (p *Plugin) tolerate(ctx context.Context, target string, mounted bool, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil || mounted || ctx.Err() != nil {
		delete(p.refusals, target)
		return err
	}
	if p.refusals[target]++; p.refusals[target] < toleratedRefusals {
		return err
	}
	delete(p.refusals, target)
	p.log.Warn("a FlexVolume driver fails to unmount what is not mounted; going on", "path", target, "refused", toleratedRefusals, "err", err)
	return nil
}

// warn makes an event of what a driver warns of.
func (p *Plugin) warn(d *driver, of subject, call callOut, a answer) {
	if a.Warning == "" {
		return
	}
	text := fmt.Sprintf("%s of FlexVolume driver %s for volume %s: %s", call, d.name, of.volume, oneLine(a.Warning, messageLimit))
	p.log.Warn("a FlexVolume driver warns", "driver", d.name, "volume", of.volume, "warning", oneLine(a.Warning, messageLimit))
	p.table.tell(v1.EventTypeWarning, "FlexVolumeDriverWarning", text)
}

func (p *Plugin) removeTarget(target, recordPath string) error {
	err := boundary.Do("flexvolume/remove-target", func() error { return os.Remove(target) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // never what is in it, and never through a mount
		return fmt.Errorf("%w; what is in it was written below the mount point: move it away", err)
	}
	return boundary.Do("flexvolume/forget-published", func() error { return removeRecord(recordPath) })
}
