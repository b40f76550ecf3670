package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// Options is what a Plugin needs. A plugin that tears down offline has no Client, no Events and no Trace.
type Options struct {
	Client kubernetes.Interface
	// Dir is where drivers are found; DefaultDir when empty.
	Dir string
	// DataDir is the root of pods/ and plugins/.
	DataDir string
	Node    string
	Limits  Limits
	Events  record.EventRecorder
	Trace   *trace.Journal
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Plugin serves all FlexVolume drivers.
type Plugin struct {
	client kubernetes.Interface
	node   string
	paths  paths
	log    *slog.Logger
	host   *host
	table  *table

	mu sync.Mutex
	// refusals counts how often a driver has refused to take away what is not mounted, by path.
	refusals map[string]int
	// asked are the paths whose filesystem is being asked how full it is.
	asked map[string]bool
}

var (
	_ plugin.Family         = &Plugin{}
	_ plugin.Attacher       = &Plugin{}
	_ plugin.Blocking       = &Plugin{}
	_ plugin.AttachVerifier = &Plugin{}
	_ plugin.Mounter        = &Plugin{}
	_ plugin.Expander       = &Plugin{}
	_ plugin.ExpanderSource = &Plugin{}
	_ plugin.Inspector      = &Plugin{}
	_ plugin.StagedLister   = &Plugin{}
	_ plugin.Driven         = &Plugin{}
	_ plugin.DriverNotifier = &Plugin{}
)

// New makes the plugin; drivers are found once it runs (Run), or are asked for once (Probe).
func New(o Options) *Plugin {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Clean(o.Dir)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // the watch tells real names
	}
	p := &Plugin{client: o.Client, node: o.Node, paths: paths{root: o.DataDir}, log: o.Log.With("room", "flexvolume"), host: newHost(&o),
		refusals: map[string]int{}, asked: map[string]bool{}}
	node := &v1.ObjectReference{Kind: "Node", Name: o.Node, UID: types.UID(o.Node)} // as a kubelet names itself in events
	tell := func(kind, reason, message string) {
		if o.Events != nil {
			o.Events.Event(node, kind, reason, message)
		}
	}
	p.table = newTable(dir, p.host, p.log, tell)
	return p
}

// Dir is where drivers are found.
func (p *Plugin) Dir() string { return p.table.root }

// Probe asks the drivers that are there to init, for a teardown when nothing runs. It returns when all have answered.
func (p *Plugin) Probe(ctx context.Context) {
	p.table.start(ctx)
	p.table.settled(ctx)
	select {
	case <-p.table.first:
	case <-ctx.Done():
	}
}

// Name is "kubernetes.io/flexvolume"; outside, each driver's name stands for the plugin (Member).
func (p *Plugin) Name() string { return PluginName }

// Member tells whose a plugin's name ("k8s/nfs") or a unique volume name ("k8s/nfs/pv1") is.
func (p *Plugin) Member(name string) (string, bool) {
	parts := strings.SplitN(name, "/", 3)
	if len(parts) < 2 {
		return "", false
	}
	driver := parts[0] + "/" + parts[1]
	return driver, checkDriver(driver) == nil
}

// Supports says whether v has a flexVolume source.
func (p *Plugin) Supports(v *plugin.Volume) bool { return persistent(v) != nil || inline(v) != nil }

// UniqueName is "<vendor>/<driver>/<pv>", as upstream's of an attachable volume, and "<vendor>/<driver>/<pod uid>^<volume>" for an
// inline volume. It does not depend on what the driver can do, which may change while the volume is in use. Volumes that can't
// be served whatever the driver are refused here.
func (p *Plugin) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	if err := p.servable(v); err != nil {
		return "", err
	}
	k, err := key(v)
	return uniqueName(p.Driver(v), k), err
}

func (p *Plugin) servable(v *plugin.Volume) error {
	if err := checkDriver(p.Driver(v)); err != nil {
		return fmt.Errorf("flexVolume.driver: %w", err)
	}
	if v.Mode() == v1.PersistentVolumeBlock {
		return errors.New("FlexVolume drivers serve no raw devices: leave out volumeMode: Block")
	}
	if v.PV != nil && len(v.PV.Spec.MountOptions) > 0 {
		return errors.New("mount options are not supported for this volume type: leave out spec.mountOptions of the PersistentVolume, and put them into flexVolume.options if the driver knows them there")
	}
	return nil
}

// Driver names the driver of v.
func (p *Plugin) Driver(v *plugin.Volume) string {
	if src := persistent(v); src != nil {
		return src.Driver
	}
	if src := inline(v); src != nil {
		return src.Driver
	}
	return ""
}

// NotifyDrivers has f called after a driver was loaded.
func (p *Plugin) NotifyDrivers(f func(driver string)) { p.table.onLoaded(f) }

// Refreshes is never so: a driver publishes once.
func (p *Plugin) Refreshes(*plugin.Volume) bool { return false }

func persistent(v *plugin.Volume) *v1.FlexPersistentVolumeSource {
	if v == nil || v.PV == nil {
		return nil
	}
	return v.PV.Spec.FlexVolume
}

func inline(v *plugin.Volume) *v1.FlexVolumeSource {
	if v == nil || v.PV != nil || v.Source == nil {
		return nil
	}
	return v.Source.FlexVolume
}

// readOnly is what the pod asks for, or what the PersistentVolume says of itself. The API's reference says that the latter
// forces it; upstream forgets to look.
func readOnly(v *plugin.Volume) bool {
	if src := persistent(v); src != nil {
		return v.ReadOnly || src.ReadOnly
	}
	src := inline(v)
	return v.ReadOnly || src != nil && src.ReadOnly
}

// stagedReadOnly says whether v is staged read-only. All pods of the node share what is staged, and the one that comes first may be the
// only one that wants to read: its own mount is read-only then, and what is staged is writable. Not so where pods on several nodes
// may read the volume: a writable mount on each, though nobody writes, replays the journal under the others.
func stagedReadOnly(v *plugin.Volume) bool {
	if src := inline(v); src != nil { // no other pod's
		return readOnly(v)
	}
	src := persistent(v)
	return src != nil && (src.ReadOnly || v.ReadOnly && slices.Contains(v.PV.Spec.AccessModes, v1.ReadOnlyMany))
}

func fsType(v *plugin.Volume) string {
	if src := persistent(v); src != nil {
		return src.FSType
	}
	if src := inline(v); src != nil {
		return src.FSType
	}
	return ""
}
