package docker

import (
	"context"
	"time"

	"berth.io/berth/internal/volume"
)

// Namespace of the claims of container engines' volumes.
const Namespace = "docker"

// Volumes is the part of volume.Service that the plugin uses.
type Volumes interface {
	EnsureNamespace(ctx context.Context, name string) error
	Create(ctx context.Context, namespace string, r volume.Request) error
	Get(ctx context.Context, namespace, name string) (volume.Volume, error)
	List(ctx context.Context, namespace string) ([]volume.Volume, error)
	Remove(ctx context.Context, namespace, name string) error
	Hold(ctx context.Context, namespace, name string, caller volume.Caller) (string, error)
	Release(ctx context.Context, namespace, name string, caller volume.Caller) error
}

// Plugin answers container engines.
type Plugin struct {
	opts Options
}

// done is the answer of what has nothing to tell.
type done struct{}

func (p *Plugin) create(ctx context.Context, r createRequest) (any, error) {
	request, err := volume.ParseOptions(r.Name, r.Opts)
	if err != nil {
		return nil, err
	}
	return done{}, p.opts.Volumes.Create(ctx, Namespace, request)
}

func (p *Plugin) remove(ctx context.Context, r nameRequest) (any, error) {
	return done{}, p.opts.Volumes.Remove(ctx, Namespace, r.Name)
}

func (p *Plugin) get(ctx context.Context, r nameRequest) (any, error) {
	v, err := p.opts.Volumes.Get(ctx, Namespace, r.Name)
	if err != nil {
		return nil, err
	}
	return getResponse{show(v)}, nil
}

func (p *Plugin) list(ctx context.Context, _ struct{}) (any, error) {
	all, err := p.opts.Volumes.List(ctx, Namespace)
	if err != nil {
		return nil, err
	}
	shown := make([]shownVolume, len(all))
	for i, v := range all {
		shown[i] = show(v)
	}
	return listResponse{shown}, nil
}

func (p *Plugin) path(ctx context.Context, r nameRequest) (any, error) {
	v, err := p.opts.Volumes.Get(ctx, Namespace, r.Name)
	if err != nil {
		return nil, err
	}
	return mountResponse{v.Path}, nil
}

func (p *Plugin) mount(ctx context.Context, r mountRequest) (any, error) {
	caller := callerOf(r)
	path, err := p.opts.Volumes.Hold(ctx, Namespace, r.Name, caller)
	if err != nil {
		return nil, err
	}
	if err := clearRoot(path); err != nil {
		p.opts.Log.Warn("a new volume is not empty: images' files are not copied to it", "volume", r.Name, "error", err)
	}
	return mountResponse{path}, nil
}

func (p *Plugin) unmount(ctx context.Context, r mountRequest) (any, error) {
	return done{}, p.opts.Volumes.Release(ctx, Namespace, r.Name, callerOf(r))
}

// callerOf tells the mounts of an engine apart. Podman counts by itself and gives always the same ID; very old engines
// give none.
func callerOf(r mountRequest) volume.Caller {
	if r.ID == "" {
		r.ID = "unnamed"
	}
	return volume.Caller{By: volume.Engine, ID: r.ID}
}

// show is the volume with what only Berth knows of it under Status, which `docker volume inspect` prints.
func show(v volume.Volume) shownVolume {
	status := map[string]any{"claim": Namespace + "/" + v.Claim, "phase": v.Phase, "size": v.Size, "class": v.Class}
	if v.Capacity != "" {
		status["capacity"] = v.Capacity
	}
	if by := v.UsedBy(); by != "" {
		status["usedBy"] = by
	}
	if v.Deleting {
		status["deleting"] = true
	}
	return shownVolume{Name: v.Name, Mountpoint: v.Path, CreatedAt: v.Created.Format(time.RFC3339), Status: status}
}
