package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// Blocks: Attach and Detach run a call-out to its end, under its own deadline.
func (p *Plugin) Blocks() {}

// Attachable is the driver's attach capability.
func (p *Plugin) Attachable(v *plugin.Volume) (bool, error) {
	d, err := p.table.peek(p.Driver(v))
	if err != nil {
		return false, err
	}
	return d.caps.Attach, nil
}

// Attach runs getvolumename and attach. That it began is noted first, so that the volume is detached in the end whatever becomes of
// this process.
func (p *Plugin) Attach(ctx context.Context, v *plugin.Volume, node types.NodeName) (plugin.Attachment, error) {
	d, k, err := p.driverAndKey(ctx, v)
	if err != nil {
		return plugin.Attachment{}, err
	}
	if err := checkElement(string(node)); err != nil {
		return plugin.Attachment{}, fmt.Errorf("node name: %w", err)
	}
	text, err := p.named(ctx, d, v)
	if err != nil {
		return plugin.Attachment{}, err
	}
	path := p.paths.attachedRecord(d.name, string(node), k)
	r := volumeRecord{Name: uniqueName(d.name, k), SpecName: v.SpecName(), Persistent: v.PV != nil, Attachable: true}
	if have, err := loadRecord(path); err == nil && have.Name == r.Name {
		r.Device = have.Device // until the driver has answered again
	}
	if err := p.noteAttached(path, r); err != nil {
		return plugin.Attachment{}, err
	}
	var a answer
	err = boundary.Do("flexvolume/attach", func() (err error) {
		a, err = d.call(ctx, subjectOf(v), callAttach, redactor{}, text, string(node))
		return err
	})
	if err != nil && !errors.Is(err, errNotSupported) {
		return plugin.Attachment{}, err
	}
	r.Device, r.Done = a.Device, true // empty where the driver does not attach
	return plugin.Attachment{DevicePath: a.Device}, p.noteAttached(path, r)
}

// named asks for the volume's name, as upstream does, and returns the options. The name itself is not used, as upstream's is not:
// the PersistentVolume's stands for the volume.
func (p *Plugin) named(ctx context.Context, d *driver, v *plugin.Volume) (string, error) {
	text, err := options(v, nil)
	if err != nil {
		return "", err
	}
	_, err = d.call(ctx, subjectOf(v), callVolumeName, redactor{}, text)
	if err != nil && !errors.Is(err, errNotSupported) {
		return "", fmt.Errorf("nothing was done yet: %w", certain(err))
	}
	return text, nil
}

// certain keeps an error's text for a call-out that has no effect: however it failed, nothing is there.
func certain(err error) error {
	if errors.Is(err, plugin.ErrUncertain) {
		return errors.New(err.Error())
	}
	return err
}

// StillAttached is isattached; a driver that does not support it is assumed to have kept the volume attached.
func (p *Plugin) StillAttached(ctx context.Context, v *plugin.Volume, node types.NodeName) (bool, error) {
	d, _, err := p.driverAndKey(ctx, v)
	if err != nil {
		return false, err
	}
	text, err := options(v, nil)
	if err != nil {
		return false, err
	}
	a, err := d.call(ctx, subjectOf(v), callIsAttached, redactor{}, text, string(node))
	if errors.Is(err, errNotSupported) {
		return true, nil
	}
	return a.Attached, err
}

// Detach runs detach with the name by which the driver knows the volume. Without the driver nobody can.
func (p *Plugin) Detach(ctx context.Context, a plugin.AttachedVolume, node types.NodeName) (bool, error) {
	name, k, ok := splitUniqueName(a.Name)
	if !ok {
		return false, fmt.Errorf("%q is not the name of a FlexVolume", a.Name)
	}
	if err := checkElement(string(node)); err != nil {
		return false, fmt.Errorf("node name: %w", err)
	}
	path := p.paths.attachedRecord(name, string(node), k)
	r, err := loadRecord(path)
	if err != nil {
		r = volumeRecord{SpecName: specNameOf(k), Persistent: !strings.Contains(k, separator)}
	}
	d, err := p.table.get(ctx, name)
	if err != nil {
		return false, err
	}
	of := subjectNamed(r.SpecName, trace.ObjectRef{}, r.Persistent)
	if a.Volume != nil {
		of = subjectOf(a.Volume)
	}
	err = boundary.Do("flexvolume/detach", func() error {
		_, err := d.call(ctx, of, callDetach, redactor{}, r.SpecName, string(node))
		return err
	})
	if err != nil && !errors.Is(err, errNotSupported) {
		return false, err
	}
	return true, boundary.Do("flexvolume/forget-attached", func() error { return removeRecord(path) })
}

// Attached lists what was noted to be attached, or to be on its way; nil when nothing was.
func (p *Plugin) Attached(context.Context) ([]plugin.AttachedVolume, error) {
	files := p.paths.glob("*/*/attached/*/*" + recordSuffix)
	var found []plugin.AttachedVolume
	var errs []error
	for _, f := range files {
		if strings.HasPrefix(filepath.Base(f), ".") {
			continue
		}
		r, err := loadRecord(f)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		default:
			found = append(found, plugin.AttachedVolume{Name: r.Name, Node: types.NodeName(filepath.Base(filepath.Dir(f))), DevicePath: r.Device, Uncertain: !r.Done})
		}
	}
	return found, errors.Join(errs...)
}

// driverAndKey is what every call-out for a volume begins with.
func (p *Plugin) driverAndKey(ctx context.Context, v *plugin.Volume) (*driver, string, error) {
	if err := p.servable(v); err != nil {
		return nil, "", err
	}
	k, err := key(v)
	if err != nil {
		return nil, "", err
	}
	d, err := p.table.get(ctx, p.Driver(v))
	return d, k, err
}
