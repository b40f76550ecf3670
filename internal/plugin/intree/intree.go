package intree

import (
	"context"
	"log/slog"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/plugin"
)

// Options is what the volumes need. DataDir must be set.
type Options struct {
	// Client may be nil: then volumes can be unpublished but not published (teardown without the API).
	Client  kubernetes.Interface
	DataDir string
	// Allocatable reports the node's allocatable resources, the limit of memory volumes and the default of
	// downwardAPI's limits.*; nil means unknown.
	Allocatable func() v1.ResourceList
	// OnChange asks for a new publish of a pod's volume, because what it shows has changed. It must not block.
	OnChange func(podUID types.UID, volumeName string)
	Log      *slog.Logger
}

// Volumes is the set of plugins of this package with what they share.
type Volumes struct {
	opts    Options
	disk    disk
	sources *sources
	tokens  *tokens
	plugins []plugin.Plugin
}

// New makes the plugins. Nothing runs until a pod is set.
func New(opts Options) *Volumes {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.OnChange == nil {
		opts.OnChange = func(types.UID, string) {}
	}
	if opts.Allocatable == nil {
		opts.Allocatable = func() v1.ResourceList { return nil }
	}
	v := &Volumes{opts: opts, disk: kernel{}}
	v.sources = newSources(opts.Client, opts.OnChange)
	v.tokens = newTokens(opts.Client, opts.OnChange)
	v.plugins = []plugin.Plugin{
		&emptyDir{Volumes: v},
		&written{Volumes: v, name: "kubernetes.io/configmap", collect: v.collectConfigMap, source: func(s *v1.VolumeSource) bool { return s.ConfigMap != nil }},
		&written{Volumes: v, name: "kubernetes.io/secret", memory: true, collect: v.collectSecret, source: func(s *v1.VolumeSource) bool { return s.Secret != nil }},
		&written{Volumes: v, name: "kubernetes.io/downward-api", memory: true, collect: v.collectDownwardAPI, source: func(s *v1.VolumeSource) bool { return s.DownwardAPI != nil }},
		&written{Volumes: v, name: "kubernetes.io/projected", memory: true, collect: v.collectProjected, source: func(s *v1.VolumeSource) bool { return s.Projected != nil }},
		&hostPath{Volumes: v},
		&local{Volumes: v},
	}
	return v
}

// Plugins lists the plugins for the registry.
func (v *Volumes) Plugins() []plugin.Plugin { return v.plugins }

// SetOnChange replaces Options.OnChange; for wiring where the mount room is made after its plugins. It must be called before SetPod.
func (v *Volumes) SetOnChange(fn func(podUID types.UID, volumeName string)) {
	v.sources.onChange = fn
	v.tokens.onChange = fn
}

// SetPod starts to watch the config maps and secrets that the pod's volumes show. It is idempotent.
func (v *Volumes) SetPod(pod *v1.Pod) { v.sources.setPod(pod) }

// ReleasePod ends what SetPod began, and forgets the pod's tokens.
func (v *Volumes) ReleasePod(uid types.UID) {
	v.sources.releasePod(uid)
	v.tokens.releasePod(uid)
}

// Run ends the watches and timers when ctx ends, and returns when they have ended.
func (v *Volumes) Run(ctx context.Context) error {
	<-ctx.Done()
	v.tokens.stop()
	v.sources.stop()
	return nil
}

// volumeDir is DIR/pods/<uid>/volumes/<plugin>/<name>, upstream's GetPodVolumeDir.
func (v *Volumes) volumeDir(uid types.UID, pluginName, specName string) string {
	return filepath.Join(v.opts.DataDir, "pods", string(uid), "volumes", plugin.EscapeName(pluginName), specName)
}

// pluginDir is DIR/pods/<uid>/plugins/<plugin>/<name>: marks that must not be inside the volume.
func (v *Volumes) pluginDir(uid types.UID, pluginName, specName string) string {
	return filepath.Join(v.opts.DataDir, "pods", string(uid), "plugins", plugin.EscapeName(pluginName), specName)
}

// podVolumeName is the unique name of a volume that belongs to one pod alone.
func podVolumeName(pluginName string, uid types.UID, specName string) v1.UniqueVolumeName {
	return v1.UniqueVolumeName(pluginName + "/" + string(uid) + "-" + specName)
}

// unstaged is the half of plugin.Mounter that volumes without a step per node do not need.
type unstaged struct{}

func (unstaged) Staged(*plugin.Volume) (bool, error)                  { return false, nil }
func (unstaged) Stage(context.Context, plugin.StageRequest) error     { return nil }
func (unstaged) Unstage(context.Context, plugin.UnstageRequest) error { return nil }
func (unstaged) Refreshes(*plugin.Volume) bool                        { return false }
