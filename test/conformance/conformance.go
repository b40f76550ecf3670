// Package conformance runs csi-test's official conformance suite against a driver that advertises every capability.
package conformance

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Accesses are the ways in which a volume is used: with each the whole suite is run.
var Accesses = []string{"mount", "block"}

// Config of the suite for `block.csi.berth.io`. Addresses and paths are the caller's to set.
func Config(access string) sanity.TestConfig {
	config := sanity.NewTestConfig()
	config.TestVolumeSize, config.TestVolumeExpandSize = 256<<20, 512<<20
	config.TestVolumeAccessType = access
	config.TestVolumeMutableParameters = map[string]string{"readAheadKiB": "256"}
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(measureAnswer))
	config.ControllerDialOptions = config.DialOptions
	return config
}

// measureAnswer leaves in an answer the sizes that encoding leaves in a request: csi-test v5.6.0 compares the topology of a
// snapshot with the one that it had asked for as Go values, and not as messages.
func measureAnswer(ctx context.Context, method string, request, answer any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	err := invoke(ctx, method, request, answer, c, o...)
	if m, ok := answer.(*csi.CreateSnapshotResponse); ok && err == nil {
		proto.Size(m)
	}
	return err
}

// Describe adds the suite with config to what Run runs.
func Describe(text string, config sanity.TestConfig) {
	ginkgo.Describe(text, func() { sanity.GinkgoTest(&config) })
}

// Run runs what was described. Everything is advertised, so that a spec that is skipped is a failure, but for one whose name has one of the
// texts of elsewhere: it cannot be run in this place, and another test runs it. Those that csi-test has switched off itself are told.
func Run(t *testing.T, title string, elsewhere ...string) {
	t.Helper()
	ginkgo.ReportAfterSuite("what was skipped", func(r ginkgo.Report) {
		counts := map[types.SpecState]int{}
		for _, spec := range r.SpecReports {
			if spec.LeafNodeType != types.NodeTypeIt {
				continue
			}
			counts[spec.State]++
			switch spec.State {
			case types.SpecStateSkipped:
				if slices.ContainsFunc(elsewhere, func(part string) bool { return strings.Contains(spec.FullText(), part) }) {
					t.Logf("run by another test: %s", spec.FullText())
					continue
				}
				t.Errorf("skipped: %s: %s", spec.FullText(), spec.Failure.Message)
			case types.SpecStatePending: // ListVolumes' pages: TestListPages of internal/driver has them
				t.Logf("switched off by csi-test itself: %s", spec.FullText())
			}
		}
		t.Logf("csi-sanity: %v", counts)
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = true, true
	ginkgo.RunSpecs(t, title, suite, reporter)
}
