package try

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"sigs.k8s.io/yaml"

	"berth.io/berth/internal/host/mortal"
	"berth.io/berth/internal/try/proxy"
	"berth.io/berth/internal/try/spec"
)

// sanityOrder is what the child that runs csi-sanity is told. It is a child because ginkgo keeps its state in globals.
type sanityOrder struct {
	Node, Controller string // sockets
	Work             string
	Size             int64
	Parameters       map[string]string
	Secrets          string            // file, or ""
	Mutable          map[string]string // parameters of a VolumeAttributesClass
}

// miscompared is a spec of csi-test 5.6 that compares two messages with reflect.DeepEqual: one was sent before and carries its
// size, the other was not.
const miscompared = "should succeed when creating a snapshot with accessibility requirements"

// stepSanity runs csi-sanity through the proxy.
func (b *bench) stepSanity(ctx context.Context, s *Step) error {
	work := filepath.Join(b.work, "s")
	if err := os.MkdirAll(work, 0o711); err != nil {
		return err
	}
	o := sanityOrder{Node: b.socket(proxy.Sanity, "n"), Controller: b.socket(proxy.Sanity, "c"), Work: work, Size: b.o.size(), Parameters: b.parameters(),
		Mutable: b.o.MutableParameters}
	if b.caps.HasController("MODIFY_VOLUME") && len(o.Mutable) == 0 {
		s.Notes = append(s.Notes, "the specs that modify a volume are left out: they need --mutable-parameters")
	}
	if len(b.o.Secrets) > 0 {
		o.Secrets = filepath.Join(work, "secrets.yaml")
		if err := writeSanitySecrets(o.Secrets, b.o.Secrets); err != nil {
			return err
		}
		defer os.Remove(o.Secrets)
	}
	if b.caps.HasPlugin("SNAPSHOT_ACCESSIBILITY_CONSTRAINTS") {
		s.Notes = append(s.Notes, "the spec '"+miscompared+"' is left out: csi-test compares messages by their memory, and no driver can pass; the bench itself looks at accessible_topology")
	}
	if err := b.runSanity(ctx, o, s); err != nil {
		return err
	}
	count := map[Outcome]int{}
	for _, p := range s.Specs {
		count[p.Outcome]++
		if p.Outcome == Failed {
			b.violate(s, spec.Violation{Rule: "csi-sanity/" + p.Name, Section: sanitySection(p.Name), Text: short(strings.Join(strings.Fields(p.Message), " "))})
		}
	}
	s.Notes = append(s.Notes, fmt.Sprintf("csi-sanity: %d specs passed, %d failed, %d skipped", count[Passed], count[Failed], count[Skipped]))
	if len(s.Specs) == 0 {
		return errors.New("csi-sanity ran no spec; see sanity.log with --keep")
	}
	return nil
}

// sanitySection is the RPC or service that a spec's name has.
func sanitySection(name string) string {
	for word := range strings.FieldsSeq(name) {
		for _, method := range []string{word, "Controller" + word} {
			if _, ok := spec.Promised(method); ok {
				return method
			}
		}
	}
	return "RPC Interface"
}

// runSanity runs the child and takes in one line for each spec.
func (b *bench) runSanity(ctx context.Context, o sanityOrder, s *Step) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return err
	}
	answerR, answerW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer answerR.Close()
	log, err := logFile(b.work, "sanity.log")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "try")
	cmd.Env = append(os.Environ(), envRole+"="+roleSanity)
	cmd.ExtraFiles = []*os.File{orderR, answerW}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ended, err := mortal.Start(cmd)
	orderR.Close()
	answerW.Close()
	if err != nil {
		orderW.Close()
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })()
	err = json.NewEncoder(orderW).Encode(o)
	orderW.Close()
	for lines := bufio.NewScanner(answerR); lines.Scan(); {
		var p SpecCase
		if json.Unmarshal(lines.Bytes(), &p) == nil {
			s.Specs = append(s.Specs, p)
		}
	}
	<-ended // its exit code says no more than the specs do
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func writeSanitySecrets(path string, secrets map[string]string) error {
	all := map[string]map[string]string{}
	for _, k := range []string{"CreateVolumeSecret", "DeleteVolumeSecret", "ControllerPublishVolumeSecret", "ControllerUnpublishVolumeSecret",
		"ControllerValidateVolumeCapabilitiesSecret", "NodeStageVolumeSecret", "NodePublishVolumeSecret", "CreateSnapshotSecret", "DeleteSnapshotSecret",
		"ControllerExpandVolumeSecret", "ControllerModifyVolumeSecret", "ListSnapshotsSecret", "GetSnapshotSecret"} {
		all[k] = maps.Clone(secrets)
	}
	data, err := yaml.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// failing is the testing.T that ginkgo asks for.
type failing struct{ failed bool }

func (f *failing) Fail() { f.failed = true }

// sanityMain is the child's whole life.
func sanityMain() int {
	var o sanityOrder
	if err := json.NewDecoder(os.NewFile(orderFD, "order")).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out := json.NewEncoder(os.NewFile(answerFD, "answer"))
	config := sanity.NewTestConfig()
	config.Address, config.ControllerAddress = "unix://"+o.Node, "unix://"+o.Controller
	config.TargetPath, config.StagingPath = filepath.Join(o.Work, "target"), filepath.Join(o.Work, "staging")
	// A directory for each spec: what one leaves would otherwise fail all that follow. What is left mounted is found and
	// taken away at the end of the run.
	fresh := func(path string) (string, error) { return os.MkdirTemp(filepath.Dir(path), filepath.Base(path)+"-") }
	config.CreateTargetDir, config.CreateStagingDir = fresh, fresh
	config.TestVolumeSize, config.TestVolumeExpandSize = o.Size, 2*o.Size
	config.TestVolumeParameters = o.Parameters
	config.SecretsFile = o.Secrets
	config.IdempotentCount = 2
	sanity.GinkgoTest(&config)
	ginkgo.ReportAfterEach(func(r ginkgo.SpecReport) {
		p := SpecCase{Name: r.FullText(), Outcome: Passed, Seconds: r.RunTime.Seconds(), Message: r.Failure.Message}
		switch {
		case r.State.Is(types.SpecStateSkipped | types.SpecStatePending):
			p.Outcome = Skipped
		case r.Failed():
			p.Outcome = Failed
		}
		_ = out.Encode(p)
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	config.TestVolumeMutableParameters = o.Mutable
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = true, true
	suite.SkipStrings = []string{miscompared}
	if len(o.Mutable) == 0 {
		suite.SkipStrings = append(suite.SkipStrings, "should modify a volume created", "fail to modify a volume created")
	}
	t := &failing{}
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	if t.failed {
		return 1
	}
	return 0
}
