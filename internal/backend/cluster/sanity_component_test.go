//go:build component

package cluster_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/driver"
)

// measureAnswer leaves in an answer the sizes that encoding leaves in a request: csi-test v5.6.0 compares the topology of a
// snapshot with the one that it had asked for as Go values, and not as messages.
func measureAnswer(ctx context.Context, method string, request, answer any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	err := invoke(ctx, method, request, answer, c, o...)
	if m, ok := answer.(*csi.CreateSnapshotResponse); ok && err == nil {
		proto.Size(m)
	}
	return err
}

// The official conformance suite: its controller half speaks to a driver on this backend, its node half to a driver on the node's
// pool, and between them there are a real API server and the node's agent.
func TestSanity(t *testing.T) {
	w := startWorld(t)
	dir := newDir(t)
	node := w.serve(t, nodeA, dir, 8<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	controller, local := filepath.Join(dir, "c", "csi.sock"), filepath.Join(dir, "n", "csi.sock")
	run(t, driver.Options{Name: driver.BlockName, SocketPath: controller, Controller: b, MaxVolumes: 8})
	run(t, driver.Options{Name: driver.BlockName, SocketPath: local, Backend: node.backend, Node: nodeA, MaxVolumes: 8})
	if err := os.Mkdir(filepath.Join(dir, "sanity"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, access := range []string{"mount", "block"} {
		config := sanity.NewTestConfig()
		config.Address, config.ControllerAddress = "unix://"+local, "unix://"+controller
		config.TargetPath = filepath.Join(dir, "sanity", "target")
		config.StagingPath = filepath.Join(dir, "sanity", "staging")
		config.TestVolumeSize = 256 << 20
		config.TestVolumeExpandSize = 512 << 20
		config.TestVolumeAccessType = access
		config.TestNodeVolumeAttachLimit = true
		config.TestVolumeMutableParameters = map[string]string{"readAheadKiB": "256"}
		config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(measureAnswer))
		config.ControllerDialOptions = config.DialOptions
		ginkgo.Describe("volumes as "+access, func() { sanity.GinkgoTest(&config) })
	}
	ginkgo.ReportAfterSuite("what was skipped", func(r ginkgo.Report) {
		counts := map[types.SpecState]int{}
		for _, spec := range r.SpecReports {
			if spec.LeafNodeType != types.NodeTypeIt {
				continue
			}
			counts[spec.State]++
			if spec.State == types.SpecStateSkipped {
				t.Errorf("skipped: %s: %s", spec.FullText(), spec.Failure.Message)
			}
		}
		t.Logf("csi-sanity: %v", counts)
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = true, true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	if left := node.pool.List(); len(left) > 0 {
		t.Errorf("volumes left: %v", left)
	}
	volumes, err := w.objects.Volumes.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(volumes.Items) > 0 {
		t.Errorf("objects of volumes left: %v, %v", volumes, err)
	}
	snapshots, err := w.objects.Snapshots.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(snapshots.Items) > 0 {
		t.Errorf("objects of snapshots left: %v, %v", snapshots, err)
	}
}
