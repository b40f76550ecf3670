//go:build component

package driver_test

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

// The official conformance suite, once with filesystems and once with raw block volumes, against a real pool, real
// loop devices and real mounts.
func TestSanity(t *testing.T) {
	s := startWith(t, 8<<30, driver.Options{MaxVolumes: 8})
	if err := os.Mkdir(filepath.Join(s.dir, "sanity"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, access := range []string{"mount", "block"} {
		config := sanity.NewTestConfig()
		config.Address = "unix://" + s.socket
		config.TargetPath = filepath.Join(s.dir, "sanity", "target")
		config.StagingPath = filepath.Join(s.dir, "sanity", "staging")
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
			switch spec.State {
			case types.SpecStateSkipped: // everything is advertised
				t.Errorf("skipped: %s: %s", spec.FullText(), spec.Failure.Message)
			case types.SpecStatePending:
				t.Logf("switched off by csi-test itself, TestListPages has it: %s", spec.FullText())
			}
		}
		t.Logf("csi-sanity: %v", counts)
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = true, true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	if busy := s.backend.Busy(); len(busy) > 0 {
		t.Errorf("still busy: %v", busy)
	}
	if left := s.pool.List(); len(left) > 0 {
		t.Errorf("volumes left: %v", left)
	}
}
