// Package kill kills `berth up` with SIGKILL at every boundary of the source, before and after the effect, in the middle
// of a whole life of volumes; starts it again; and looks at the world: the journey completed, what was fsynced is
// there, and no volume, loop device, mount or attachment is left.
//
// The list of boundaries comes from the source (test/boundaries). A boundary that the script never crosses fails the
// test unless notCrossed says why.
package kill

import (
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/test/boundaries"
	"berth.io/berth/test/instance"
)

// EnvSample is "all", or how many kill points to try (they are spread over the rooms, the same for one source tree), or
// patterns of "room/effect:side" with commas between them.
const EnvSample = "BERTH_KILL_SAMPLE"

// point is one place to die at.
type point struct{ name, side string }

func (p point) String() string { return p.name + ":" + p.side }

func TestKillAtEveryBoundary(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run `make kill`")
	}
	found, _, err := boundaries.Scan(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	points := choose(t, found)
	t.Logf("%d boundaries in the source, %d kill points to try", len(found), len(points))
	var reached int
	for _, p := range points {
		t.Run(p.String(), func(t *testing.T) {
			// Most boundaries are crossed by any life of a volume. Those of the very first start need a fresh directory;
			// every point gets one, so that no point depends on what another left.
			if killAt(t, p) {
				reached++
				return
			}
			if why, ok := notCrossed[p.name]; ok {
				t.Logf("not crossed by the script: %s", why)
				return
			}
			t.Errorf("the script never crosses %s: extend it, or say in notCrossed why it cannot", p)
		})
	}
	t.Logf("killed at %d of %d points", reached, len(points))
}

// choose applies EnvSample.
func choose(t *testing.T, found []boundaries.Boundary) []point {
	t.Helper()
	var all []point
	for _, b := range found {
		all = append(all, point{b.Name, "before"}, point{b.Name, "after"})
	}
	sample := os.Getenv(EnvSample)
	if sample == "" || sample == "all" {
		return all
	}
	if n, err := strconv.Atoi(sample); err == nil {
		// By a hash of the name: spread over the rooms, and stable.
		sort.Slice(all, func(i, k int) bool { return hash(all[i]) < hash(all[k]) })
		return all[:min(n, len(all))]
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

func hash(p point) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, p)
	return h.Sum64()
}

// killAt lives the script with the kill armed, and says whether it struck. Whatever happened, the world must be clean
// at the end.
func killAt(t *testing.T, p point) bool {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-kill-")
	if err != nil {
		t.Fatal(err)
	}
	// A port of its own: several of these tests may run at once, and two instances that start in the same moment would
	// choose the same one.
	in, err := instance.New(dir, "--pool-size", "2Gi", "--listen", freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	s := &script{in: in, ctx: ctx, log: t.Logf}
	in.Env = []string{boundary.EnvKillAt + "=" + p.String()}
	err = s.live()
	in.Env = nil
	if err != nil {
		t.Errorf("the journey did not complete: %v\n%s", err, in.Output())
	}
	if err := s.end(); err != nil {
		t.Errorf("berth down: %v", err)
	}
	if w, err := in.World(); err != nil || w.Empty() != nil {
		t.Errorf("after berth down: %v %v", err, w.Empty())
		return s.deaths > 0
	}
	if t.Failed() {
		t.Logf("kept for a look: %s", dir)
	} else {
		os.RemoveAll(dir)
	}
	return s.deaths > 0
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
