package attach

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// blocker is the backend as a plugin of drivers whose calls run to their end: volumes called hang-… hang until the call is ended.
// Its volumes are "vendor/driver/<pv>".
type blocker struct {
	*backend
	notify []func(string)
	lost   map[string]bool // volumes that isattached denies
}

func (b *blocker) Name() string            { return "kubernetes.io/family" }
func (b *blocker) Blocks()                 {}
func (b *blocker) Of(string) plugin.Plugin { return b }
func (b *blocker) Member(name string) (string, bool) {
	return "vendor/driver", strings.HasPrefix(name, "vendor/driver")
}
func (b *blocker) Supports(v *plugin.Volume) bool { return v.PV != nil && v.PV.Spec.FlexVolume != nil }
func (b *blocker) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return v1.UniqueVolumeName("vendor/driver/" + v.PV.Name), nil
}
func (b *blocker) NotifyDrivers(f func(string)) { b.notify = append(b.notify, f) }

func (b *blocker) Attachable(v *plugin.Volume) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return true, b.fails["attachable"]
}

func (b *blocker) Attach(ctx context.Context, v *plugin.Volume, node types.NodeName) (plugin.Attachment, error) {
	if strings.HasPrefix(v.PV.Name, "hang") {
		<-ctx.Done()
		return plugin.Attachment{}, ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, "attach "+v.PV.Name)
	delete(b.lost, v.PV.Name)
	return plugin.Attachment{DevicePath: "/dev/x"}, b.fails["attach"]
}

func (b *blocker) StillAttached(_ context.Context, v *plugin.Volume, _ types.NodeName) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost[v.PV.Name], nil
}

func startBlocker(t *testing.T, change func(*world, *blocker), names ...string) (*world, *blocker) {
	t.Helper()
	o := one(machine("n"))
	pod := user("a", "pod", "n", names...)
	o = append(o, pod)
	for _, name := range names {
		b := bound("a", name, v1.ReadWriteOnce)
		b[1].(*v1.PersistentVolume).Spec.PersistentVolumeSource = v1.PersistentVolumeSource{FlexVolume: &v1.FlexPersistentVolumeSource{Driver: "vendor/driver"}}
		o = append(o, b...)
	}
	var b *blocker
	w := start(t, func(w *world) {
		b = &blocker{backend: w.backend, lost: map[string]bool{}}
		w.options.Plugins = plugin.NewRegistry(b)
		if change != nil {
			change(w, b)
		}
	}, o...)
	return w, b
}

// More calls hang than there are workers: another volume is attached nevertheless, and the end of the controller ends them.
func TestHangingAttachesHoldUpNobody(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, "hang-"+string(rune('a'+i/26))+string(rune('a'+i%26)))
	}
	w, _ := startBlocker(t, nil, append(names, "fine")...)
	w.eventually("all are asked", func() bool { return len(w.c.Holders()) == 40 })
	w.eventually("fine is reported", func() bool { return slices.Equal(w.reported("n"), []string{"vendor/driver/fine"}) })
	for _, h := range w.c.Holders() {
		if h.Step != "attach" || time.Since(h.Since) > time.Minute {
			t.Errorf("%+v", h)
		}
	}
}

// The volume of a driver that is not known yet is attached when the driver comes, and detached by the same driver.
func TestADriverComesLater(t *testing.T) {
	w, b := startBlocker(t, func(w *world, b *blocker) { b.fails["attachable"] = plugin.ErrDriverMissing }, "vol")
	w.quiet()
	if c := b.calls(); len(c) != 0 {
		t.Fatal(c)
	}
	b.set(func() { delete(b.fails, "attachable") })
	for _, f := range b.notify {
		f("vendor/driver")
	}
	w.eventually("reported", func() bool { return slices.Equal(w.reported("n"), []string{"vendor/driver/vol"}) })
	w.deletePod("a", "pod")
	w.eventually("detached", func() bool {
		return len(w.reported("n")) == 0 && slices.Contains(b.calls(), "detach vendor/driver/vol n")
	})
}

// What isattached denies is attached again, once its driver is there after a start.
func TestALostAttachmentIsFoundByIsAttached(t *testing.T) {
	w, b := startBlocker(t, nil, "vol")
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
	b.set(func() { b.lost["vol"] = true })
	for _, f := range b.notify {
		f("another/driver")
	}
	w.quiet()
	if c := b.calls(); len(c) != 1 {
		t.Fatalf("asked for another's volume: %v", c)
	}
	for _, f := range b.notify {
		f("vendor/driver")
	}
	w.eventually("attached again", func() bool { return len(b.calls()) == 2 })
	if r := w.reported("n"); len(r) != 1 {
		t.Errorf("reported %v meanwhile", r)
	}
}

// A failed call is told and tried again; what is asked in between is not lost.
func TestABlockingCallIsRetried(t *testing.T) {
	w, b := startBlocker(t, func(_ *world, b *blocker) { b.fails["attach"] = context.DeadlineExceeded }, "vol")
	w.eventually("the event", func() bool { return w.event("Warning FailedAttachVolume") })
	b.set(func() { delete(b.fails, "attach") })
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
	if err := w.api.CoreV1().Pods("a").Delete(t.Context(), "pod", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("detached", func() bool { return len(w.reported("n")) == 0 })
}
