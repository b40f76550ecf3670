package csi

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/plugin"
)

// PluginName is the name of this plugin in unique volume names and paths.
const PluginName = "kubernetes.io/csi"

// nameSeparator stands between driver and handle in a unique volume name.
const nameSeparator = "^"

// Options is what a Plugin needs. A plugin for attaching only needs no Drivers and no DataDir; a plugin that tears down
// offline needs no Client and no Informers.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Drivers   *Drivers
	// DataDir is the root of pods/ and plugins/.
	DataDir string
	Node    string
	Log     *slog.Logger
	// NewAttachment is what the driver's attacher would first of all write on a new VolumeAttachment; created with it, the
	// object saves that write. It may be nil, and answer nothing.
	NewAttachment func(driver, node string) (finalizers []string, annotations map[string]string)
}

// Plugin is the plugin "kubernetes.io/csi".
type Plugin struct {
	client  kubernetes.Interface
	drivers *Drivers
	paths   paths
	node    string
	log     *slog.Logger
	marks   func(driver, node string) ([]string, map[string]string)

	// nil when offline
	csiDrivers  storagelisters.CSIDriverLister
	attachments storagelisters.VolumeAttachmentLister
	volumes     corelisters.PersistentVolumeLister

	// seLinux says whether this host has SELinux.
	seLinux func() bool

	tokens tokenCache
	detach detachMemory

	mu sync.Mutex
	// contexts are publish contexts read live, by the name of their VolumeAttachment, as long as that is there.
	contexts map[string]publishContext
}

var (
	_ plugin.Attacher     = &Plugin{}
	_ plugin.Mounter      = &Plugin{}
	_ plugin.Expander     = &Plugin{}
	_ plugin.Inspector    = &Plugin{}
	_ plugin.StagedLister = &Plugin{}
	_ plugin.Driven       = &Plugin{}

	_ plugin.DriverNotifier = &Plugin{}
)

// New makes the plugin and asks the informer factory for what it reads; the caller starts the factory.
func New(o Options) (*Plugin, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Drivers == nil {
		o.Drivers = NewDrivers(DriversOptions{Log: o.Log})
	}
	p := &Plugin{
		client:   o.Client,
		drivers:  o.Drivers,
		paths:    paths{root: o.DataDir},
		node:     o.Node,
		log:      o.Log,
		marks:    o.NewAttachment,
		seLinux:  seLinuxEnabled,
		contexts: map[string]publishContext{},
	}
	if o.Informers != nil {
		if o.Client == nil {
			return nil, errors.New("csi plugin: informers without a client")
		}
		drivers := o.Informers.Storage().V1().CSIDrivers()
		attachments := o.Informers.Storage().V1().VolumeAttachments()
		volumes := o.Informers.Core().V1().PersistentVolumes()
		drivers.Informer()
		attachments.Informer()
		volumes.Informer()
		if _, err := attachments.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: p.attachmentGone}); err != nil {
			return nil, fmt.Errorf("csi plugin: watch attachments: %w", err)
		}
		p.csiDrivers, p.attachments, p.volumes = drivers.Lister(), attachments.Lister(), volumes.Lister()
	}
	return p, nil
}

// Name is "kubernetes.io/csi".
func (p *Plugin) Name() string { return PluginName }

// Supports says whether v has a csi source.
func (p *Plugin) Supports(v *plugin.Volume) bool {
	return persistent(v) != nil || inline(v) != nil
}

// UniqueName is "kubernetes.io/csi/<driver>^<handle>" for a PersistentVolume, and
// "kubernetes.io/csi/<pod uid>-<volume>" for an inline volume, which no other pod can share.
func (p *Plugin) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	if src := persistent(v); src != nil {
		return uniqueName(src.Driver, src.VolumeHandle), nil
	}
	if inline(v) != nil {
		if v.Pod == nil {
			return "", fmt.Errorf("name inline volume %s: its pod is not known", v.Name)
		}
		return v1.UniqueVolumeName(fmt.Sprintf("%s/%s-%s", PluginName, v.Pod.UID, v.SpecName())), nil
	}
	return "", fmt.Errorf("volume %s has no csi source", v.SpecName())
}

func uniqueName(driver, handle string) v1.UniqueVolumeName {
	return v1.UniqueVolumeName(PluginName + "/" + driver + nameSeparator + handle)
}

// splitUniqueName undoes uniqueName. Drivers have no "^" in their names; handles may.
func splitUniqueName(name v1.UniqueVolumeName) (driver, handle string, ok bool) {
	rest, ok := strings.CutPrefix(string(name), PluginName+"/")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, nameSeparator)
}

// Driver names the CSI driver of v.
func (p *Plugin) Driver(v *plugin.Volume) string {
	if src := persistent(v); src != nil {
		return src.Driver
	}
	if src := inline(v); src != nil {
		return src.Driver
	}
	return ""
}

// NotifyDrivers has f called after each registration of a driver.
func (p *Plugin) NotifyDrivers(f func(driver string)) { p.drivers.notifyRegistered(f) }

// Refreshes is CSIDriver.spec.requiresRepublish.
func (p *Plugin) Refreshes(v *plugin.Volume) bool {
	d, err := p.csiDriver(p.Driver(v))
	return err == nil && d != nil && d.Spec.RequiresRepublish != nil && *d.Spec.RequiresRepublish
}

// csiDriver returns the driver's CSIDriver object, or nil when it has none: the object is optional.
func (p *Plugin) csiDriver(name string) (*storagev1.CSIDriver, error) {
	if p.csiDrivers == nil {
		return nil, nil
	}
	d, err := p.csiDrivers.Get(name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up CSIDriver %s: %w", name, err)
	}
	return d, nil
}

func persistent(v *plugin.Volume) *v1.CSIPersistentVolumeSource {
	if v == nil || v.PV == nil {
		return nil
	}
	return v.PV.Spec.CSI
}

func inline(v *plugin.Volume) *v1.CSIVolumeSource {
	if v == nil || v.PV != nil || v.Source == nil {
		return nil
	}
	return v.Source.CSI
}

// handleOf is the volume's handle; that of an inline volume is made from its pod and its name (upstream makeVolumeHandle).
func handleOf(v *plugin.Volume) string {
	if src := persistent(v); src != nil {
		return src.VolumeHandle
	}
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(v.Pod.UID)+v.SpecName())))
}

func lifecycle(v *plugin.Volume) storagev1.VolumeLifecycleMode {
	if persistent(v) != nil {
		return storagev1.VolumeLifecyclePersistent
	}
	return storagev1.VolumeLifecycleEphemeral
}

func accessMode(v *plugin.Volume) v1.PersistentVolumeAccessMode {
	if v.PV != nil && len(v.PV.Spec.AccessModes) > 0 {
		return v.PV.Spec.AccessModes[0]
	}
	return v1.ReadWriteOnce
}
