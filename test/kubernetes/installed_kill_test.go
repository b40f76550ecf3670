//go:build kubernetes

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// envSample is how many places to die at, "all", or patterns of "room/effect:side" with commas between them, as in test/kill.
const envSample = "BERTH_KILL_SAMPLE"

// perLife is at how many places the controller dies in one life of volumes.
const perLife = 6

// mortal is the controller as a process of the node beside its pods, which are scaled away: it can be killed at a boundary, and started again
// without that.
type mortal struct {
	s      *story
	berth  string
	record string
	out    *lockedBuffer
	ended  chan struct{}
	points []string // where it is still to die
	deaths []string
}

func (m *mortal) start() {
	m.s.Helper()
	m.out, m.ended = &lockedBuffer{}, make(chan struct{})
	// Its name is always the same: the lease is its own again at once.
	cmd := shared.inside(context.Background(), "env", "POD_NAME=mortal", "POD_NAMESPACE="+system,
		"BERTH_KILL_AT="+strings.Join(m.points, ","), "BERTH_KILL_RECORD="+m.record, m.berth, "controller", "--worker-threads=4")
	cmd.Stdout, cmd.Stderr = m.out, m.out
	if err := cmd.Start(); err != nil {
		m.s.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(m.ended) }()
}

// again starts the controller anew where it has died at a boundary.
func (m *mortal) again() {
	m.s.Helper()
	select {
	case <-m.ended:
	default:
		return
	}
	_, said, died := strings.Cut(m.out.String(), "boundary: killed at ")
	if !died {
		m.s.Fatalf("the controller has ended by itself: %s", m.out)
	}
	point, _, _ := strings.Cut(said, "\n")
	m.deaths = append(m.deaths, point)
	m.points = slices.DeleteFunc(slices.Clone(m.points), func(p string) bool { return p == point })
	m.start()
}

// end is kill -9: what entered the namespaces for it is not the process itself.
func (m *mortal) end() {
	_, _ = output(shared.inside(context.Background(), "pkill", "--signal", "KILL", "--full", m.berth+" controller"))
	<-m.ended
}

// The controller is killed before and after what it writes and calls, in the middle of a life of volumes, and started again: the life goes on to
// its end, and nothing is left of it, neither in the API nor on the disk.
func TestInstalledControllerKilledAtBoundaries(t *testing.T) {
	s := tell(t)
	in := s.installed()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	s.last = append(s.last, in.apply) // as it is in deploy/
	s.inside("kubectl", "-n", system, "scale", controller, "--replicas=0")
	s.until("no controller", func() error {
		if n := len(s.podsOf(controller)); n > 0 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
	recorded := shared.run("crossed")
	first := &mortal{s: s, berth: filepath.Join(dir, "berth"), record: recorded}
	first.start()
	s.life(first, "recorded")
	first.end()
	text, err := os.ReadFile(recorded)
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for name := range strings.FieldsSeq(string(text)) {
		points = append(points, name+":before", name+":after")
	}
	slices.Sort(points)
	t.Logf("the controller crosses %d boundaries", len(points)/2)
	points = sample(t, points)
	for n := 0; len(points) > 0; n++ {
		now := points[:min(perLife, len(points))]
		points = points[len(now):]
		t.Run(strings.Join(now, " "), func(t *testing.T) {
			s := s.part(t)
			m := &mortal{s: s, berth: first.berth, record: recorded, points: now}
			m.start()
			defer m.end()
			s.life(m, fmt.Sprintf("killed-%d", n))
			t.Logf("died at %s", strings.Join(m.deaths, " "))
			if len(m.points) > 0 {
				t.Logf("did not come by %s this time", strings.Join(m.points, " "))
			}
			if len(m.deaths) == 0 {
				t.Error("it never died")
			}
		})
	}
}

// sample chooses among the points: spread over all of them.
func sample(t *testing.T, points []string) []string {
	t.Helper()
	asked := os.Getenv(envSample)
	if asked == "all" {
		return points
	}
	if asked == "" {
		asked = "12"
	}
	if n, err := strconv.Atoi(asked); err == nil {
		var some []string
		for i := range min(n, len(points)) {
			some = append(some, points[i*len(points)/min(n, len(points))])
		}
		return some
	}
	var some []string
	for pattern := range strings.SplitSeq(asked, ",") {
		for _, p := range points {
			if ok, err := filepath.Match(pattern, p); err != nil {
				t.Fatal(err)
			} else if ok {
				some = append(some, p)
			}
		}
	}
	return some
}

// life goes through what a controller does for volumes, with names of its own, and fails where a step does not come to pass within two minutes.
func (s *story) life(m *mortal, name string) {
	s.Helper()
	s.more()
	before := s.onDisk()
	claim := func(claim, more, size string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s-%[2]s, labels: {life: %[1]s}}
spec: {accessModes: [ReadWriteOnce], %[3]s resources: {requests: {storage: %[4]s}}}
---`, name, claim, more, size)
	}
	pod := func(p string) string {
		return podYAML(name+"-"+p, fmt.Sprintf("persistentVolumeClaim: {claimName: %s-%s}", name, p))
	}
	kubectl := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return output(shared.inside(ctx, append([]string{"kubectl", "-n", s.ns}, args...)...))
	}
	apply := func(yaml string) func() error {
		return func() error {
			cmd := shared.inside(context.Background(), "kubectl", "-n", s.ns, "apply", "-f", "-")
			cmd.Stdin = strings.NewReader(yaml)
			_, err := output(cmd)
			return err
		}
	}
	is := func(want string, args ...string) func() error {
		return func() error {
			got, err := kubectl(append([]string{"get"}, args...)...)
			if err == nil && got != want {
				err = fmt.Errorf("%s is %q, not %q", args[0], got, want)
			}
			return err
		}
	}
	const ready = `jsonpath={.status.conditions[?(@.type=="Ready")].status}`
	run := func(args ...string) func() error {
		return func() error { _, err := kubectl(args...); return err }
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"claim and pod are made", apply(claim("data", "", "320Mi") + pod("data"))},
		{"the pod is Ready", is("True", "pod/"+name+"-data", "-o", ready)},
		{"a file is written", run("exec", name+"-data", "--", "sh", "-c", "echo kept >/data/file; sync")},
		// Not of one name: at its start external-snapshotter v8.6.0 fills its cache of group snapshots with the snapshots (initializeCaches), and then
		// takes a group of a snapshot's name for an older version of that: it is not worked on, and not deleted.
		{"a snapshot is asked for", apply(fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %[1]s}
spec: {source: {persistentVolumeClaimName: %[1]s-data}}
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: %[1]s-group}
spec: {source: {selector: {matchLabels: {life: %[1]s}}}}
`, name))},
		{"the snapshot is ready", is("true", "volumesnapshot/"+name, "-o", "jsonpath={.status.readyToUse}")},
		{"the group snapshot is ready", is("true", "volumegroupsnapshot/"+name+"-group", "-o", "jsonpath={.status.readyToUse}")},
		{"it is restored", apply(claim("restored", fmt.Sprintf("dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: %s},", name), "320Mi") + pod("restored"))},
		{"its pod is Ready", is("True", "pod/"+name+"-restored", "-o", ready)},
		{"it has the file", run("exec", name+"-restored", "--", "grep", "kept", "/data/file")},
		{"it grows", run("patch", "persistentvolumeclaim", name+"-restored", "-p", `{"spec":{"resources":{"requests":{"storage":"384Mi"}}}}`)},
		{"its volume has grown", func() error {
			got, err := kubectl("get", "persistentvolume", "-o", "jsonpath={.items[*].spec.capacity.storage}")
			if err == nil && !strings.Contains(got, "384Mi") {
				err = fmt.Errorf("the volumes have %s", got)
			}
			return err
		}},
		{"the pods are deleted", run("delete", "pod", "--all", "--timeout=15s")},
		{"the snapshots are deleted", run("delete", "volumegroupsnapshot,volumesnapshot", "--all", "--timeout=15s")},
		{"the claims are deleted", run("delete", "persistentvolumeclaim", "--all", "--timeout=15s")},
		{"nothing is left in the API", func() error { return s.nothingOf() }},
		{"nothing is left on the disk", func() error {
			// Of what was there before, something of a life that failed may be on its way out.
			if left := slices.DeleteFunc(s.onDisk(), func(id string) bool { return slices.Contains(before, id) }); len(left) > 0 {
				return fmt.Errorf("there are %q", left)
			}
			return nil
		}},
	} {
		deadline := time.Now().Add(2 * time.Minute)
		for {
			m.again()
			err := step.do()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				s.Fatalf("%s: waited 2 minutes: %v; died at %q; the controller says:\n%s", step.name, err, m.deaths, lastLines(m.out.String(), 30))
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// nothingOf says what the API still has of the story's volumes.
func (s *story) nothingOf() error {
	var volumes corev1.PersistentVolumeList
	if err := s.readNow(&volumes, "persistentvolume"); err != nil {
		return err
	}
	var problems []error
	for _, v := range volumes.Items {
		if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Namespace == s.ns {
			problems = append(problems, fmt.Errorf("volume %s is %s", v.Name, v.Status.Phase))
		}
	}
	var attachments storagev1.VolumeAttachmentList
	if err := s.readNow(&attachments, "volumeattachment"); err != nil {
		return err
	}
	for _, a := range attachments.Items {
		problems = append(problems, fmt.Errorf("%s is attached to %s", *a.Spec.Source.PersistentVolumeName, a.Spec.NodeName))
	}
	for _, kind := range []string{"volumesnapshotcontent", "volumegroupsnapshotcontent", "blocksnapshots.storage.berth.io", "blockvolumes.storage.berth.io"} {
		left, err := output(shared.inside(context.Background(), "kubectl", "get", kind, "-o", "name"))
		if left = strings.TrimSpace(left); err == nil && left != "" {
			err = errors.New(left)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// readNow is read without the story's deadline.
func (s *story) readNow(into any, kind string) error {
	other := *s
	other.ctx = context.Background()
	return other.read(into, kind)
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
