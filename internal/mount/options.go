package mount

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// Options is what a Manager needs. Client, Informers, Plugins, DataDir and Node must be set.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Plugins   *plugin.Registry
	// DataDir is the root of pods/ and plugins/ (the kubelet's root directory).
	DataDir string
	// Node is the name of this node.
	Node string
	// AttachOnController: the attach room attaches, and the node waits for node.status.volumesAttached. Without it the
	// node attaches by itself.
	AttachOnController bool
	Events             record.EventRecorder
	Trace              *trace.Journal
	Log                *slog.Logger
	Metrics            prometheus.Registerer
	// OnChange is called after the status of a pod's volumes has changed, from any goroutine and without a lock held.
	// It must not block; the pod's Status can be asked from within it.
	OnChange func(podUID types.UID)
}

// PodStatus is what has become of a pod's volumes.
type PodStatus struct {
	// Volumes in the order of pod.spec.volumes; those that no container uses are left out, as the kubelet does. After
	// ReleasePod: what is still mounted.
	Volumes []VolumeStatus
	// AllMounted: every volume that a container uses is mounted (true for a pod without any).
	AllMounted bool
	// AllUnmounted: nothing of the pod is mounted or may be mounted, and its volume directories are gone (true for a
	// pod that the manager does not know).
	AllUnmounted bool
}

// VolumeStatus is one volume of a pod.
type VolumeStatus struct {
	// Name is pod.spec.volumes[].name; for a volume that is only found on the disk, its directory's name.
	Name string
	// PV is the PersistentVolume's name; empty for inline volumes.
	PV string
	// Mode tells whether Path is a directory or a device node.
	Mode    v1.PersistentVolumeMode
	Mounted bool
	// Path on the host, when Mounted.
	Path string
	// Waiting is the reason why the volume is not mounted yet (or not unmounted yet), for a user; empty when nothing is waited for.
	Waiting string
	// Since when Waiting or Err holds.
	Since time.Time
	// Err is the last failure, nil after a success.
	Err error
}

// Holder is an operation under way: who holds the volume, with which step, since when.
type Holder struct {
	Volume v1.UniqueVolumeName
	PV     string
	Step   trace.Step
	Pod    trace.ObjectRef
	Since  time.Time
}
