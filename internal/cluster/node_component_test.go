//go:build component

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/test/realapi"
)

// kubelet is what a kubelet does with a driver's registration: it asks who it is, writes CSINode, and says so.
func (w *world) kubelet(dir, driverName string) error {
	reg, err := grpc.NewClient("unix://"+filepath.Join(dir, "plugins_registry", driverName+"-reg.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer reg.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	client := registration.NewRegistrationClient(reg)
	info, err := client.GetInfo(ctx, &registration.InfoRequest{})
	if err != nil {
		return err
	}
	at, err := grpc.NewClient("unix://"+info.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer at.Close()
	node, err := csi.NewNodeClient(at).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return err
	}
	have, err := w.api.StorageV1().CSINodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !shows(have, info.Name) {
		d := storagev1.CSINodeDriver{Name: info.Name, NodeID: node.NodeId}
		labels := map[string]string{}
		for key, value := range node.GetAccessibleTopology().GetSegments() {
			d.TopologyKeys, labels[key] = append(d.TopologyKeys, key), value
		}
		have.Spec.Drivers = append(have.Spec.Drivers, d)
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
		if err != nil {
			return err
		}
		if _, err := w.api.CoreV1().Nodes().Patch(ctx, "n1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
		if _, err := w.api.StorageV1().CSINodes().Update(ctx, have, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	_, err = client.NotifyRegistrationStatus(ctx, &registration.RegistrationStatus{PluginRegistered: true})
	return err
}

func (w *world) node(kubelet, data string, args ...string) (*process, string) {
	w.Helper()
	http := realapi.FreeAddress(w.T)
	return w.start([]string{"KUBE_NODE_NAME=n1", "POD_NAMESPACE=default", "KUBECONFIG="}, filepath.Join(w.bin, "berth"),
		append([]string{"node", "--kubernetes", "--kubeconfig", w.config, "--kubelet-dir", kubelet, "--data-dir", data, "--http-endpoint", http}, args...)...), http
}

func (w *world) nodeObject() {
	w.Helper()
	if _, err := w.api.CoreV1().Nodes().Create(w.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{others, notReady}}}, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
	if _, err := w.api.StorageV1().CSINodes().Create(w.Context(), &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) taints() (keys string) {
	w.Helper()
	n, err := w.api.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	for _, t := range n.Spec.Taints {
		if !strings.HasPrefix(t.Key, "node.kubernetes.io/") { // the controllers'
			keys += t.Key + " "
		}
	}
	return keys
}

// A node from its first start: the taint goes when the kubelet shows the driver; a stop, a kill and an update leave pool and volumes
// mounted, and the next process goes on with them.
func TestANodesLife(t *testing.T) {
	w := newWorld(t)
	w.server.Define(t, "../../deploy/kubernetes/crds/storage.berth.io_block*.yaml")
	w.nodeObject()
	kubelet, data := filepath.Join(w.dir, "kubelet"), filepath.Join(w.dir, "data")
	if err := os.MkdirAll(kubelet, 0o755); err != nil {
		t.Fatal(err)
	}
	at := pool.MountPoint(filepath.Join(data, "pools"), "default")
	t.Cleanup(func() { tearDown(t, data) })

	p, http := w.node(kubelet, data, "--pool-size", "2Gi")
	w.eventually("the registration", time.Minute, func() error { return w.kubelet(kubelet, driver.BlockName) })
	w.answers("http://"+http+"/healthz", 200)
	w.answers("http://"+http+"/readyz", 200)
	w.eventually("the taint to go", 20*time.Second, func() error {
		if got := w.taints(); got != others.Key+" " {
			return errors.New(got)
		}
		return nil
	})

	// A volume in use, through the driver as the kubelet calls it.
	use := w.mountVolume(kubelet)
	if second, _ := w.node(kubelet, data); second.exit(t, 30*time.Second) != 1 || !strings.Contains(second.output(), "in use by another `berth node`") {
		t.Errorf("a second process: %s", second.output())
	}
	for how, sig := range map[string]syscall.Signal{"stopped": syscall.SIGTERM, "killed": syscall.SIGKILL} {
		code := p.end(t, sig)
		if sig == syscall.SIGTERM && code != 0 {
			t.Errorf("exit code %d after SIGTERM:\n%s", code, p.output())
		}
		if sig == syscall.SIGTERM {
			if _, err := os.Stat(filepath.Join(kubelet, "plugins_registry", driver.BlockName+"-reg.sock")); !os.IsNotExist(err) {
				t.Errorf("the registration of a process that stopped: %v", err)
			}
		}
		if is, err := mountpoint.Is(at); err != nil || !is {
			t.Errorf("%s: the pool is not mounted: %v", how, err)
		}
		use(how)
		p, http = w.node(kubelet, data)
		w.answers("http://"+http+"/healthz", 200)
		w.eventually("the driver after it was "+how, time.Minute, func() error { return w.kubelet(kubelet, driver.BlockName) })
		use("after it was " + how)
	}
	if got := w.taints(); got != others.Key+" " {
		t.Errorf("at the end: %s", got)
	}
	w.unmountVolume(kubelet)

	// The controller's half of the driver, in its own process: a claim's volume is made in this node's pool, and deleted there.
	_, controller := w.controller("a")
	w.answers("http://"+controller+"/readyz", 200)
	w.class(driver.BlockName)
	w.claim("c")
	w.bound("c")
	if pv := w.volumes(); len(pv) != 1 || pv[0].Spec.NodeAffinity == nil {
		t.Errorf("volumes: %+v", pv)
	}
	if err := w.api.CoreV1().PersistentVolumeClaims("default").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the volume to go", time.Minute, func() error {
		if n := len(w.volumes()); n > 0 {
			return fmt.Errorf("%d PersistentVolumes", n)
		}
		return nil
	})

	// The API goes away for less than the controller's lease, and comes back: both see it again, and a volume is made as before.
	w.server.Kill()
	w.eventually("the node to miss the API", time.Minute, func() error { return tells(p, "the API server cannot be reached") })
	time.Sleep(5 * time.Second)
	w.server.Restart(t)
	back := time.Now()
	w.eventually("the node to see it again", time.Minute, func() error { return tells(p, "the API server answers again") })
	t.Logf("the node sees the API again %s after its return", time.Since(back).Round(time.Millisecond))
	w.claim("d")
	w.bound("d")
	t.Logf("a claim is bound %s after it", time.Since(back).Round(time.Millisecond))
	if err := w.api.CoreV1().PersistentVolumeClaims("default").Delete(t.Context(), "d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("its volume to go", time.Minute, func() error {
		if n := len(w.volumes()); n > 0 {
			return fmt.Errorf("%d PersistentVolumes", n)
		}
		return nil
	})
	p.end(t, syscall.SIGTERM)
}

// tells is nil when the process has logged it.
func tells(p *process, what string) error {
	if !strings.Contains(p.output(), what) {
		return fmt.Errorf("it does not say %q:\n%s", what, p.output())
	}
	return nil
}

func (w *world) driverClient(kubelet string) *grpc.ClientConn {
	w.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(kubelet, "plugins", driver.BlockName, "csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { conn.Close() })
	return conn
}

var mounted = &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}

const inUse = "pvc-in-use"

// mountVolume makes and stages a volume, and returns how to see that a file in it, held open all the time, can be written.
func (w *world) mountVolume(kubelet string) (use func(when string)) {
	w.Helper()
	conn := w.driverClient(kubelet)
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	made, err := csi.NewControllerClient(conn).CreateVolume(ctx, &csi.CreateVolumeRequest{Name: inUse, CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20}, VolumeCapabilities: []*csi.VolumeCapability{mounted}})
	if err != nil {
		w.Fatal(err)
	}
	id := made.Volume.VolumeId
	if _, err := csi.NewControllerClient(conn).ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: "n1", VolumeCapability: mounted}); err != nil {
		w.Fatal(err)
	}
	at := filepath.Join(kubelet, "stage")
	if err := os.MkdirAll(at, 0o755); err != nil {
		w.Fatal(err)
	}
	if _, err := csi.NewNodeClient(conn).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: at, VolumeCapability: mounted}); err != nil {
		w.Fatal(err)
	}
	f, err := os.Create(filepath.Join(at, "file"))
	if err != nil {
		w.Fatal(err)
	}
	w.closeFile = f.Close
	w.volume = id
	return func(when string) {
		w.Helper()
		if _, err := fmt.Fprintln(f, when); err != nil {
			w.Errorf("%s: a write: %v", when, err)
		}
		if err := f.Sync(); err != nil {
			w.Errorf("%s: %v", when, err)
		}
	}
}

func (w *world) unmountVolume(kubelet string) {
	w.Helper()
	_ = w.closeFile()
	conn := w.driverClient(kubelet)
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	_, err := csi.NewNodeClient(conn).NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: w.volume, StagingTargetPath: filepath.Join(kubelet, "stage")})
	if err == nil {
		_, err = csi.NewControllerClient(conn).ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: w.volume})
	}
	if err == nil {
		_, err = csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: w.volume})
	}
	if err != nil {
		w.Error(err)
	}
}

// tearDown takes the pool away.
func tearDown(t *testing.T, data string) {
	if err := pool.Teardown(filepath.Join(data, "pools")); err != nil {
		t.Errorf("take the pool away: %v", err)
	}
}
