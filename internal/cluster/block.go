package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"berth.io/berth/internal/backend/cluster"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/provision"
)

// blockHalf is the controller's half of block.csi.berth.io, served on a socket of this process: provision speaks to it as to any driver.
type blockHalf struct {
	dir     string // of the socket; its own
	backend *cluster.Backend
	driver  *driver.Driver
}

func (h *blockHalf) socket() string { return filepath.Join(h.dir, "csi.sock") }

func (l *leading) makeBlock() (err error) {
	c := l.c
	if !c.Controllers[RoleBlock] {
		return nil
	}
	client, err := objects.NewClient(c.config)
	if err != nil {
		return err
	}
	h := &blockHalf{}
	if h.backend, err = cluster.New(cluster.Options{Objects: client, Kube: c.client, Nodes: l.informers.Core().V1().Nodes(), Log: c.log}); err != nil {
		return err
	}
	h.dir = filepath.Join(os.TempDir(), fmt.Sprintf("berth-controller-%d", os.Getpid()))
	if err = boundary.Do("cluster/make-socket-directory", func() error { return makeOwn(h.dir) }); err != nil {
		return fmt.Errorf("the directory of the driver's socket: %w (TMPDIR names another place)", err)
	}
	h.driver, err = driver.New(driver.Options{Name: driver.BlockName, Version: c.Version, SocketPath: h.socket(), Controller: h.backend, Log: c.log, Metrics: c.metrics})
	l.block = h
	return err
}

// makeOwn makes a directory that nobody else may enter. One that an earlier process of this number left, as the first of a
// container, is taken away; another user's is refused.
func makeOwn(dir string) error {
	if fi, err := os.Lstat(dir); err == nil {
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok || !fi.IsDir() || int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s is there and not a directory of this user", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return os.Mkdir(dir, 0o700)
}

// start runs what provision calls, until the function that it returns is called, after the work has ended. A failure is the
// work's; working ends with that.
func (h *blockHalf) start(lower, working context.Context, work *errgroup.Group) (end func()) {
	ctx, stop := context.WithCancel(lower)
	var running sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		failed := make(chan error, 1)
		running.Go(func() {
			if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
			close(failed)
		})
		work.Go(func() error {
			select {
			case err := <-failed:
				return err
			case <-working.Done():
				return nil
			}
		})
	}
	run("block backend", h.backend.Run)
	run("block driver", h.driver.Run)
	return func() {
		stop()
		running.Wait()
		_ = boundary.Do("cluster/remove-socket-directory", func() error { return os.RemoveAll(h.dir) })
	}
}

// serveBlock gives our own driver its roles once it is served.
func (l *leading) serveBlock(ctx context.Context) error {
	select {
	case <-l.block.driver.Serving():
	case <-ctx.Done():
		return nil
	}
	l.block.backend.OnCapacityChange(func() { l.provision.CapacityChanged(driver.BlockName) })
	return l.provision.AddDriver(ctx, provision.Driver{Name: driver.BlockName, Endpoint: l.block.socket()})
}
