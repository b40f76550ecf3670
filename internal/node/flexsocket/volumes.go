package flexsocket

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/flexvolume/block/wire"
)

// volumes of one driver.
type volumes struct {
	backend backend.Backend
	notes   *notes
	holds   hold.Table
}

// Exclude has attach done, which is somebody else's attach of the volume, unless it is attached through the socket: then it is
// ErrInUse. The backend alone cannot tell two attachments to one node apart, and the detach of one would be that of both.
func (s *Server) Exclude(ctx context.Context, driver, id string, attach func() error) error {
	v, ok := s.drivers[driver]
	if !ok {
		return attach()
	}
	h, err := v.holds.Acquire(ctx, id, "attach beside FlexVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	if n := v.notes.get(id); n.Node != "" {
		return fmt.Errorf("%w: volume %s is attached to node %s by its FlexVolume driver, as %s: delete the pods that use it that way first", backend.ErrInUse, id, n.Node, n.Name)
	}
	return attach()
}

// do makes one call. Calls for one volume follow one another.
func (v *volumes) do(ctx context.Context, r wire.Request) (wire.Answer, error) {
	id, err := v.meant(r)
	if err != nil || id == "" {
		return wire.Answer{}, err
	}
	h, err := v.holds.Acquire(ctx, id, "FlexVolume "+r.Call)
	if err != nil {
		return wire.Answer{}, err
	}
	defer h.Release()
	n := v.notes.get(id)
	var a wire.Answer
	switch r.Call {
	case wire.Attach:
		err = v.attach(ctx, n, r)
	case wire.IsAttached:
		a.Attached, err = v.isAttached(ctx, n, r)
	case wire.Detach:
		err = v.detach(ctx, n, r)
	case wire.MountDevice:
		err = v.stage(ctx, n, r)
	case wire.UnmountDevice:
		err = v.unstage(ctx, n, r)
	case wire.Mount:
		err = v.publish(ctx, n, r)
	case wire.Unmount:
		err = v.unpublish(ctx, n, r)
	case wire.ExpandVolume:
		a.Bytes, err = v.resize(ctx, r)
	case wire.ExpandFS:
		a.Bytes, err = v.expand(ctx, n, r)
	default:
		err = fmt.Errorf("the node agent does not know the call %q", r.Call)
	}
	return a, err
}

// meant finds the volume that a request is about; empty: of none that there is anything to do for.
func (v *volumes) meant(r wire.Request) (string, error) {
	switch r.Call {
	case wire.UnmountDevice, wire.Unmount:
		if id := v.notes.at(r.Path); id != "" {
			return id, nil
		}
		if mounted(r.Path) {
			return "", fmt.Errorf("what is mounted at %s was not mounted by the driver, and is left alone: unmount it by hand", r.Path)
		}
		return "", nil // unmounted already
	case wire.Detach:
		// A kubelet's attach/detach controller names the PersistentVolume, others what getvolumename answered.
		if v.notes.get(r.Volume).Node != "" {
			return r.Volume, nil
		}
		switch ids := v.notes.attachedAs(r.Volume); len(ids) {
		case 0:
			return "", nil // detached already
		case 1:
			return ids[0], nil
		default:
			return "", fmt.Errorf("the volumes %s are attached under the name %s: detach them by their ids, and give the volumes of pods names of their own", strings.Join(ids, ", "), r.Volume)
		}
	}
	return r.Volume, nil
}

func (v *volumes) attach(ctx context.Context, n note, r wire.Request) error {
	have, err := v.backend.Get(ctx, r.Volume)
	if errors.Is(err, backend.ErrNotFound) {
		return fmt.Errorf("%w: no pool of this node has it, and FlexVolume serves the volumes of a node's own pools", err)
	}
	if err != nil {
		return err
	}
	if n.Node == "" && len(have.Nodes) > 0 {
		return fmt.Errorf("%w: volume %s is attached to node %s by its CSI driver, or by FlexVolume before its note was lost: delete the pods that use it that way first", backend.ErrInUse, r.Volume, have.Nodes[0])
	}
	if n.Node != "" && n.Node != r.Node {
		return fmt.Errorf("%w: volume %s is attached to node %s", backend.ErrInUse, r.Volume, n.Node)
	}
	was := n
	n.Name, n.Node = r.Name, r.Node
	if err := v.notes.put(n); err != nil {
		return err
	}
	// Always for writing: a kubelet attaches once, and pods that read and pods that write follow.
	err = v.backend.Attach(ctx, r.Volume, r.Node, false)
	if errors.Is(err, backend.ErrNodeNotFound) {
		err = fmt.Errorf("%w: FlexVolume serves a pool's volumes on the pool's own node; give the pod a nodeSelector for it", err)
	}
	if err != nil && was.Node == "" {
		return errors.Join(err, v.notes.put(was))
	}
	return err
}

func (v *volumes) isAttached(ctx context.Context, n note, r wire.Request) (bool, error) {
	if n.Node != r.Node {
		return false, nil
	}
	have, err := v.backend.Get(ctx, r.Volume)
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	return err == nil && slices.Contains(have.Nodes, r.Node), err
}

// detach never takes away what the CSI driver attached: only what is noted here.
func (v *volumes) detach(ctx context.Context, n note, r wire.Request) error {
	if r.Node != "" && n.Node != r.Node {
		return nil
	}
	if err := v.backend.Detach(ctx, n.Volume, n.Node); err != nil {
		return err
	}
	n.Name, n.Node = "", ""
	return v.notes.put(n)
}

// stage mounts for writing also where reading is asked for: the next pod may write. Its mount is what refuses to.
func (v *volumes) stage(ctx context.Context, n note, r wire.Request) error {
	if n.Staged != r.Path && mounted(n.Staged) {
		return fmt.Errorf("%w: volume %s is mounted at %s", backend.ErrInUse, r.Volume, n.Staged)
	}
	n.Staged = r.Path
	if err := v.notes.put(n); err != nil {
		return err
	}
	err := v.backend.Stage(ctx, backend.StageRequest{ID: r.Volume, Path: r.Path, FSType: r.FSType})
	if err != nil && !mounted(r.Path) {
		n.Staged = ""
		return errors.Join(err, v.notes.put(n))
	}
	return err
}

func (v *volumes) unstage(ctx context.Context, n note, r wire.Request) error {
	was := mounted(r.Path)
	// Also where nothing is mounted: a stage that was killed may have left a device.
	err := v.backend.Unstage(ctx, n.Volume, r.Path)
	if errors.Is(err, backend.ErrInUse) && !was {
		err = nil // through the CSI driver, at another path
	}
	if err != nil {
		return err
	}
	n.Staged = ""
	return v.notes.put(n)
}

func (v *volumes) publish(ctx context.Context, n note, r wire.Request) error {
	if n.Staged == "" {
		return fmt.Errorf("%w: mountdevice has not mounted volume %s on this node", backend.ErrNotStaged, r.Volume)
	}
	if !slices.Contains(n.Published, r.Path) {
		n.Published = append(n.Published, r.Path)
	}
	if err := v.notes.put(n); err != nil {
		return err
	}
	err := v.backend.Publish(ctx, backend.PublishRequest{ID: r.Volume, StagingPath: n.Staged, Target: r.Path, ReadOnly: r.ReadOnly})
	if err != nil && !mounted(r.Path) {
		return errors.Join(err, v.forgetPublished(n, r.Path))
	}
	return err
}

func (v *volumes) unpublish(ctx context.Context, n note, r wire.Request) error {
	if err := v.backend.Unpublish(ctx, n.Volume, r.Path); err != nil {
		return err
	}
	return v.forgetPublished(n, r.Path)
}

func (v *volumes) forgetPublished(n note, path string) error {
	n.Published = slices.DeleteFunc(slices.Clone(n.Published), func(p string) bool { return p == path })
	return v.notes.put(n)
}

func (v *volumes) resize(ctx context.Context, r wire.Request) (int64, error) {
	grown, err := v.backend.Resize(ctx, r.Volume, r.Bytes)
	return grown.SizeBytes, err
}

// expand grows the volume itself, too, where nobody has: upstream's expand controller has no FlexVolume plugin, takes every such volume for
// one that its node grows (pkg/volume/plugins.go, FindExpandablePluginBySpec and IsKubeletExpandable), and never calls expandvolume.
func (v *volumes) expand(ctx context.Context, n note, r wire.Request) (int64, error) {
	if n.Staged != r.Path && !slices.Contains(n.Published, r.Path) {
		return 0, fmt.Errorf("%w: mountdevice has not mounted volume %s at %s", backend.ErrNotStaged, r.Volume, r.Path)
	}
	if _, err := v.backend.Resize(ctx, r.Volume, r.Bytes); err != nil { // a smaller size changes nothing
		return 0, err
	}
	return v.backend.Expand(ctx, r.Volume, r.Path)
}
