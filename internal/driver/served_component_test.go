//go:build component

package driver_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/host/loop"
)

// served is a driver on a pool of its own, reached through its socket as a kubelet would.
type served struct {
	dir, socket string
	pool        *pool.Pool
	backend     *block.Backend
	stop        func()

	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
	csi.GroupControllerClient
	csi.SnapshotMetadataClient
}

const node = "node-1"

func start(t testing.TB, limit int64) *served {
	t.Helper()
	return startWith(t, limit, driver.Options{})
}

func startWith(t testing.TB, limit int64, o driver.Options) *served {
	t.Helper()
	// Reached through a symbolic link, as a data directory may be.
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Teardown(filepath.Join(dir, "pools")); err != nil {
			t.Error(err)
		}
	})
	s := startInWith(t, dir, limit, o)
	t.Cleanup(func() { s.stop() })
	return s
}

// startIn starts a driver on the data directory dir; stop ends it as a process that ends, without unmounting.
func startIn(t testing.TB, dir string, limit int64) *served {
	t.Helper()
	return startInWith(t, dir, limit, driver.Options{})
}

func startInWith(t testing.TB, dir string, limit int64, o driver.Options) *served {
	t.Helper()
	s := &served{dir: dir, socket: filepath.Join(dir, "plugins", driver.BlockName, "csi.sock")}
	loops, err := loop.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	if s.pool, err = pool.Open(t.Context(), pool.Options{Dir: filepath.Join(dir, "pools"), LimitBytes: limit, Loops: loops}); err != nil {
		t.Fatal(err)
	}
	if s.backend, err = block.New(block.Options{Pool: s.pool, Loops: loops, Node: node}); err != nil {
		t.Fatal(err)
	}
	o.Name, o.Node, o.SocketPath, o.Backend = driver.BlockName, node, s.socket, s.backend
	d, err := driver.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Serving():
	case err := <-ended:
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.IdentityClient, s.ControllerClient, s.NodeClient = csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	s.GroupControllerClient, s.SnapshotMetadataClient = csi.NewGroupControllerClient(conn), csi.NewSnapshotMetadataClient(conn)
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.backend.Close()
		s.pool.Close()
	}
	return s
}

func mountCapability(fsType string, mode csi.VolumeCapability_AccessMode_Mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

func blockCapability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

const (
	writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	single = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	mib    = int64(1) << 20
)

func (s *served) create(t testing.TB, name string, size int64, c *csi.VolumeCapability) string {
	t.Helper()
	r, err := s.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapabilities: []*csi.VolumeCapability{c},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.Volume.VolumeId
}

func (s *served) staging(id string) string { return filepath.Join(s.dir, "staging", id) }
func (s *served) target(id string) string  { return filepath.Join(s.dir, "pods", id, "mount") }

func (s *served) publish(t testing.TB, id string, c *csi.VolumeCapability) {
	t.Helper()
	if _, err := s.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: c}); err != nil {
		t.Fatal(err)
	}
	s.stage(t, id, c)
	if _, err := s.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.target(id), VolumeCapability: c}); err != nil {
		t.Fatal(err)
	}
}

func (s *served) stage(t testing.TB, id string, c *csi.VolumeCapability) {
	t.Helper()
	os.MkdirAll(s.staging(id), 0o750)
	if _, err := s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: c}); err != nil {
		t.Fatal(err)
	}
}

func (s *served) unpublish(t testing.TB, id string) {
	t.Helper()
	if _, err := s.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: s.target(id)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node}); err != nil {
		t.Fatal(err)
	}
}

func (s *served) delete(t testing.TB, id string) {
	t.Helper()
	if _, err := s.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Fatal(err)
	}
}
