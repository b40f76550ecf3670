package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/intree"
)

// ExpanderFor is what grows pv away from the node: expandvolume of its driver.
func (p *Plugin) ExpanderFor(pv *v1.PersistentVolume) (plugin.ControllerExpander, bool) {
	if pv.Spec.FlexVolume == nil {
		return nil, false
	}
	return volumeExpander{p, pv.Spec.FlexVolume.Driver}, true
}

// volumeExpander is of one driver: whether a node must grow the filesystem afterwards is each driver's own.
type volumeExpander struct {
	*Plugin
	driver string
}

// Name is the driver's.
func (e volumeExpander) Name() string { return e.driver }

// RequiresFSResize is the driver's capability; the default where it is not there.
func (e volumeExpander) RequiresFSResize() bool {
	d, err := e.table.peek(e.driver)
	return err != nil || d.caps.RequiresFSResize
}

// ExpandVolume runs expandvolume. As upstream, the driver is believed to have reached the size: volumeNewSize is only taken where
// it is more.
func (e volumeExpander) ExpandVolume(ctx context.Context, pv *v1.PersistentVolume, size, old resource.Quantity) (resource.Quantity, error) {
	v := &plugin.Volume{PV: pv}
	d, _, err := e.driverAndKey(ctx, v)
	if err != nil {
		return old, err
	}
	text, err := options(v, nil)
	if err != nil {
		return old, err
	}
	var a answer
	err = boundary.Do("flexvolume/expand-volume", func() error {
		a, err = d.call(ctx, subjectOf(v), callExpandVolume, redactor{}, text, e.GlobalPath(v), bytesOf(size), bytesOf(old))
		return err
	})
	switch {
	case errors.Is(err, errNotSupported):
	case err != nil:
		return old, err
	case a.NewSize > size.Value():
		return *resource.NewQuantity(a.NewSize, resource.BinarySI), nil
	}
	return size, nil
}

func bytesOf(q resource.Quantity) string { return strconv.FormatInt(q.Value(), 10) }

// Expand runs expandfs with the pod's directory, as upstream does, or else grows the filesystem on the device. A driver
// without devices that does not support it has no filesystem of its own to grow.
func (p *Plugin) Expand(ctx context.Context, r plugin.ExpandRequest) error {
	v := r.Volume
	if v.Pod == nil || v.PV == nil {
		return fmt.Errorf("expand %s: %w", v.SpecName(), plugin.ErrExpandNotServed)
	}
	d, k, err := p.driverAndKey(ctx, v)
	if err != nil {
		return err
	}
	text, err := options(v, nil)
	if err != nil {
		return err
	}
	device := ""
	if staged, err := loadRecord(p.paths.stagedRecord(d.name, k)); err == nil {
		device = staged.Device
	}
	target := p.paths.target(v.Pod.UID, d.name, v.SpecName())
	err = boundary.Do("flexvolume/expand-fs", func() error {
		_, err := d.call(ctx, subjectOf(v), callExpandFS, redactor{}, text, device, target, strconv.FormatInt(r.NewSize, 10), strconv.FormatInt(r.OldSize, 10))
		return err
	})
	switch {
	case !errors.Is(err, errNotSupported):
		return err
	case !filepath.IsAbs(device):
		return nil
	}
	return intree.GrowFilesystem(ctx, device, target)
}
