package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/control"
	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/node/holderexec"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/csi"
	"berth.io/berth/internal/plugin/flexvolume"
	"berth.io/berth/internal/plugin/intree"
	"berth.io/berth/internal/volume"
)

// Paths of the control socket.
const (
	PathDown    = "/v1/down"
	PathStatus  = "/v1/status"
	PathHolders = "/v1/holders"
	PathUnwell  = "/v1/unwell"
	PathOrphans = "/v1/orphans"
)

// endWithin is how long a running instance may take to end after its volumes are unmounted.
const endWithin = 30 * time.Second

// Down unmounts, detaches and stops: through the running instance, or from what is on the disk when none runs.
func Down(ctx context.Context, dir string, out io.Writer) error {
	d, err := Resolve(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(string(d)); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(out, "%s does not exist: nothing to take down\n", d)
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("berth down needs root: it unmounts and detaches")
	}
	if err := d.mustBeOurs(); err != nil {
		return err
	}
	running, release, err := d.askDown(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := d.teardownOffline(ctx); err != nil {
		return err
	}
	if running {
		fmt.Fprintln(out, "unmounted, detached, stopped")
	} else {
		fmt.Fprintln(out, "nothing was running; unmounted and detached what was left")
	}
	return nil
}

// askDown asks the running instance to go down, and returns with the directory held when it has, or when none runs. One
// that is only starting does not answer yet.
func (d DataDir) askDown(ctx context.Context) (running bool, release func(), err error) {
	if err := os.MkdirAll(d.join("run"), 0o700); err != nil {
		return false, nil, err
	}
	for deadline := time.Now().Add(endWithin); ; {
		err := control.NewClient(d.Control()).Post(ctx, PathDown, nil)
		if err == nil {
			release, err = d.awaitLock(ctx)
			return true, release, err
		}
		if !errors.Is(err, control.ErrNotRunning) {
			return false, nil, err
		}
		release, err = d.lock()
		if err == nil || !errors.Is(err, ErrInUse) {
			return false, release, err
		}
		if time.Now().After(deadline) {
			return false, nil, fmt.Errorf("data directory %s is %w, which has not answered for %s", d, ErrInUse, endWithin)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return false, nil, ctx.Err()
		}
	}
}

// awaitLock waits for the running instance to end.
func (d DataDir) awaitLock(ctx context.Context) (func(), error) {
	f, err := os.OpenFile(d.join("run", "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() { got <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	t := time.NewTimer(endWithin)
	defer t.Stop()
	select {
	case err := <-got:
		return func() { f.Close() }, err
	case <-t.C:
		return nil, fmt.Errorf("data directory %s is still %w after %s", d, ErrInUse, endWithin)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// teardownOffline takes away what is mounted and attached below the directory, with no API and no driver.
func (d DataDir) teardownOffline(ctx context.Context) error {
	if err := d.endCommands(); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	drivers := csi.NewDrivers(csi.DriversOptions{Journal: d.driversJournal(), Log: log})
	drivers.RegisterKnown()
	c, err := csi.New(csi.Options{Drivers: drivers, DataDir: string(d), Log: log})
	if err != nil {
		return err
	}
	volumes := intree.New(intree.Options{DataDir: string(d), Log: log})
	flex := flexvolume.New(flexvolume.Options{Dir: d.volumePluginDir(), DataDir: string(d), Log: log})
	if d.hasFlexVolumes() {
		probing, stop := context.WithCancel(ctx)
		defer stop()
		flex.Probe(probing)
	}
	registry := plugin.NewRegistry(append([]plugin.Plugin{c, flex}, volumes.Plugins()...)...)
	// A killed process may have left a filesystem frozen: once it is unmounted nobody can thaw it.
	if err := pool.Thaw(d.Pools()); err != nil {
		return err
	}
	return errors.Join(volume.TakeDown(string(d)), mount.TeardownOffline(ctx, string(d), registry, log), pool.Teardown(d.Pools()))
}

// teardown takes everything down in a running instance; the pool follows when the instance has ended. While a process
// uses a volume nothing at all is taken away: the instance goes on running, and its pods would have lost what they hold.
func (in *instance) teardown(ctx context.Context) error {
	if err := in.rooms.mount.Busy(); err != nil {
		return fmt.Errorf("nothing was taken down; end what uses these volumes and run `berth down` again:\n%w", err)
	}
	if err := in.rooms.named.TakeDown(ctx); err != nil {
		return err
	}
	if err := in.dir.endCommands(); err != nil {
		return err
	}
	if err := in.rooms.mount.Teardown(ctx); err != nil {
		return errors.Join(err, in.dir.eachPod(holderexec.Reopen), in.rooms.named.Restore(ctx)) // it runs on
	}
	return nil
}

// endCommands ends what runs by `berth exec`, as the end of its pod would: its mount namespace keeps the volumes' loop
// devices, and with them the pool, busy, and nothing in ours shows that.
func (d DataDir) endCommands() error { return d.eachPod(holderexec.KillAll) }

func (d DataDir) eachPod(f func(dataDir string, pod types.UID) error) error {
	pods, err := os.ReadDir(d.join("pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, p := range pods {
		errs = append(errs, f(string(d), types.UID(p.Name())))
	}
	return errors.Join(errs...)
}
