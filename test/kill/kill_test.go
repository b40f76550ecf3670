// Package kill kills `berth up` with SIGKILL at every boundary of the source, before and after the effect, in the middle
// of a whole life of volumes; starts it again; and looks at the world: the journey completed, what was fsynced is
// there, and no volume, loop device, mount or attachment is left.
//
// The list of boundaries comes from the source (test/boundaries). A boundary that no life crosses fails the test unless
// notCrossed says why, and so does one that notCrossed lists and a life crosses.
package kill

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.io/berth/test/boundaries"
	"berth.io/berth/test/instance"
)

// EnvSample is "all", or how many kill points to try (they are spread over the rooms, the same for one source tree), or
// patterns of "room/effect:side" with commas between them.
const EnvSample = "BERTH_KILL_SAMPLE"

// EnvBatch is at how many points to die in one life, 1 by default. It makes the whole list many times faster, and a failure
// harder to read.
const EnvBatch = "BERTH_KILL_BATCH"

// point is one place to die at.
type point struct{ name, side string }

func (p point) String() string { return p.name + ":" + p.side }

func TestKillAtEveryBoundary(t *testing.T) {
	size := 1
	if v := os.Getenv(EnvBatch); v != "" {
		var err error
		if size, err = strconv.Atoi(v); err != nil || size < 1 {
			t.Fatalf("%s=%q is no number", EnvBatch, v)
		}
	}
	points, reached := choose(t, scan(t)), 0
	for _, l := range lives {
		var mine []string
		for _, p := range points {
			if lifeOf(p.name).name == l.name {
				mine = append(mine, p.String())
			}
		}
		if size > 1 {
			// Not both sides of a boundary in one life: what died before an effect is often put right by the next start.
			slices.SortStableFunc(mine, func(a, b string) int { return strings.Compare(side(a), side(b)) })
		}
		var missed []string
		for batch := range slices.Chunk(mine, size) {
			t.Run(batch[0], func(t *testing.T) {
				// A fresh directory for each, so that no point depends on what another left.
				missed = append(missed, live(t, l, batch, "")...)
			})
		}
		reached += len(mine) - len(missed)
		for _, p := range missed {
			t.Run(p+" again", func(t *testing.T) {
				if size > 1 && len(live(t, l, []string{p}, "")) == 0 { // another death has put it right
					reached++
					return
				}
				t.Errorf("the life %q does not cross %s: extend it, or say in notCrossed why none can", l.name, p)
			})
		}
	}
	t.Logf("killed at %d of %d points", reached, len(points))
}

// Each life is lived once without a death, to see what it crosses: every boundary has a life, or a reason.
func TestEveryBoundaryIsCrossedOrListed(t *testing.T) {
	found := scan(t)
	crossed := map[string]map[string]bool{} // life → boundaries
	for _, l := range lives {
		t.Run(l.name, func(t *testing.T) {
			record := filepath.Join(t.TempDir(), "record")
			live(t, l, nil, record)
			b, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			crossed[l.name] = map[string]bool{}
			for _, name := range strings.Fields(string(b)) {
				crossed[l.name][name] = true
			}
		})
	}
	for _, b := range found {
		var by []string
		for _, l := range lives {
			if crossed[l.name][b.Name] {
				by = append(by, l.name)
			}
		}
		why, listed := notCrossed[b.Name]
		switch l := lifeOf(b.Name); {
		case listed && len(by) > 0:
			t.Errorf("%s is listed as not crossed (%s), but the lives %q cross it", b.Name, why, by)
		case listed:
		case len(by) == 0:
			t.Errorf("%s (%s): no life crosses it: extend one, or say in notCrossed why none can", b.Name, b.Position)
		case !crossed[l.name][b.Name]:
			t.Errorf("%s is crossed by the lives %q and not by %q: set its home", b.Name, by, l.name)
		}
	}
	for name := range notCrossed {
		if !exists(found, name) {
			t.Errorf("notCrossed lists %s, which is not in the source", name)
		}
	}
	for name := range home {
		if !exists(found, name) {
			t.Errorf("home lists %s, which is not in the source", name)
		}
	}
}

// A sample of as many points as there are rooms has one of each.
func TestSampleIsSpreadOverRooms(t *testing.T) {
	found, _, err := boundaries.Scan(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	var all []point
	rooms := map[string]bool{}
	for _, b := range found {
		room, _, _ := strings.Cut(b.Name, "/")
		rooms[room] = true
		all = append(all, point{b.Name, "before"}, point{b.Name, "after"})
	}
	for _, p := range spread(all, len(rooms)) {
		room, _, _ := strings.Cut(p.name, "/")
		delete(rooms, room)
	}
	if len(rooms) > 0 {
		t.Errorf("no point of %v", rooms)
	}
}

func exists(found []boundaries.Boundary, name string) bool {
	for _, b := range found {
		if b.Name == name {
			return true
		}
	}
	return false
}

func scan(t *testing.T) []boundaries.Boundary {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run `make kill`")
	}
	found, _, err := boundaries.Scan(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// choose applies EnvSample to the points of the boundaries that can be crossed.
func choose(t *testing.T, found []boundaries.Boundary) []point {
	t.Helper()
	var all []point
	for _, b := range found {
		if _, not := notCrossed[b.Name]; !not {
			all = append(all, point{b.Name, "before"}, point{b.Name, "after"})
		}
	}
	t.Logf("%d boundaries in the source, %d of them not crossed, %d kill points", len(found), len(notCrossed), len(all))
	sample := os.Getenv(EnvSample)
	if sample == "" || sample == "all" {
		return all
	}
	if n, err := strconv.Atoi(sample); err == nil {
		return spread(all, n)
	}
	var chosen []point
	for _, p := range all {
		for pattern := range strings.SplitSeq(sample, ",") {
			if ok, _ := filepath.Match(pattern, p.String()); ok {
				chosen = append(chosen, p)
				break
			}
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("%s=%q: want all, a number, or patterns of kill points", EnvSample, sample)
	}
	return chosen
}

// spread takes n points, no room's second before every room's first. Which ones is a matter of a hash of their names: the
// same for one source tree.
func spread(all []point, n int) []point {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b point) int { return cmp.Compare(hash(a), hash(b)) })
	taken, round := map[string]int{}, make(map[point]int, len(all))
	for _, p := range all {
		room, _, _ := strings.Cut(p.name, "/")
		round[p] = taken[room]
		taken[room]++
	}
	slices.SortStableFunc(all, func(a, b point) int { return round[a] - round[b] })
	return all[:min(n, len(all))]
}

func side(p string) string { return p[strings.LastIndex(p, ":"):] }

func hash(p point) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, p)
	return h.Sum64()
}

// live lives l, dying at each of points, and returns those that were not crossed. Whatever happened, the world must be
// clean at the end. Without points the crossings are written to record.
func live(t *testing.T, l life, points []string, record string) (missed []string) {
	t.Helper()
	if l.live != nil {
		return l.live(t, l, points, record)
	}
	dir, err := os.MkdirTemp("", "berth-kill-")
	if err != nil {
		t.Fatal(err)
	}
	// A port of its own: several of these tests may run at once, and two instances that start in the same moment would
	// choose the same one.
	in, err := instance.New(dir, "--listen", freeAddress(t), "--volume-plugin-dir", filepath.Join(dir+"-host", "flexvolume-drivers"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+time.Duration(len(points))*20*time.Second)
	defer cancel()
	in.Wrap = l.wrap
	s := newScript(t, ctx, in)
	if l.args != nil {
		in.Args = append(in.Args, l.args(s)...)
	} else {
		in.Args = append(in.Args, "--pool-size", "2Gi")
	}
	if err := s.through(l, points, record); err != nil {
		t.Errorf("the journey did not complete: %v\n%s", err, in.Output())
	}
	if err := s.down(); err != nil {
		t.Errorf("berth down: %v", err)
	}
	for _, set := range s.arms {
		missed = append(missed, set...)
	}
	s.arms, s.record = nil, ""
	if err := s.down(); err != nil {
		t.Errorf("berth down when nothing runs: %v", err)
	}
	if err := s.in.Settled(func(w instance.World) error { return w.Empty() }); err != nil {
		t.Errorf("after berth down: %v", err)
		return missed
	}
	if t.Failed() {
		t.Logf("kept for a look: %s", dir)
	} else {
		os.RemoveAll(dir)
	}
	return missed
}

// through is the past, then the life that is to be killed.
func (s *script) through(l life, points []string, record string) error {
	if l.past != nil {
		if err := l.past(s); err != nil {
			return fmt.Errorf("what was before: %w", err)
		}
		if s.in.Running() {
			return fmt.Errorf("the past of %q still runs", l.name)
		}
		s.past = true
	}
	if l.first != "" {
		s.arms = append(s.arms, []string{l.first})
	}
	if len(points) > 0 {
		s.arms = append(s.arms, slices.Clone(points))
	}
	s.record = record
	return s.goThrough(l.steps(s))
}

func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		// Not one that the kernel chooses: those are of connections too, and while the instance is down one may take it.
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10000+rand.IntN(20000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}
