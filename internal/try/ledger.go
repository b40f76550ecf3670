package try

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"berth.io/berth/internal/try/proxy"
)

// ledger remembers on the disk what a driver has made for the bench and not deleted yet, so that nothing stays behind in
// a driver that outlives the run.
type ledger struct {
	mu   sync.Mutex
	path string
	have []entry
	ever map[string]bool // volume ids
}

type entry struct {
	kind, id string   // "volume" | "snapshot" | "group"
	members  []string // ids of a group's snapshots, without which it cannot be deleted
}

// String names an entry for a reader.
func (e entry) String() string {
	s := fmt.Sprintf("%s %q", e.kind, e.id)
	if len(e.members) > 0 {
		s += fmt.Sprintf(" (of snapshots %q)", e.members)
	}
	return s
}

// begin notes whose driver it is, where that is somebody else's process.
func (l *ledger) begin(driver string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.append("=", entry{kind: "driver", id: driver})
}

func newLedger(path string) *ledger { return &ledger{path: path, ever: map[string]bool{}} }

// note takes in a call, also one whose answer the caller did not get.
func (l *ledger) note(c *proxy.Call) {
	if c.Code != codes.OK || c.Response == nil {
		return
	}
	switch r := c.Response.(type) {
	case *csi.CreateVolumeResponse:
		l.add(entry{kind: "volume", id: r.GetVolume().GetVolumeId()})
	case *csi.CreateSnapshotResponse:
		l.add(entry{kind: "snapshot", id: r.GetSnapshot().GetSnapshotId()})
	case *csi.CreateVolumeGroupSnapshotResponse:
		e := entry{kind: "group", id: r.GetGroupSnapshot().GetGroupSnapshotId()}
		for _, s := range r.GetGroupSnapshot().GetSnapshots() {
			e.members = append(e.members, s.GetSnapshotId())
		}
		l.add(e)
	case *csi.DeleteVolumeResponse:
		l.drop("volume", c.Request.(*csi.DeleteVolumeRequest).GetVolumeId())
	case *csi.DeleteSnapshotResponse:
		l.drop("snapshot", c.Request.(*csi.DeleteSnapshotRequest).GetSnapshotId())
	case *csi.DeleteVolumeGroupSnapshotResponse:
		l.drop("group", c.Request.(*csi.DeleteVolumeGroupSnapshotRequest).GetGroupSnapshotId())
	}
}

func (l *ledger) add(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.id == "" || slices.ContainsFunc(l.have, e.is) {
		return
	}
	l.have = append(l.have, e)
	if e.kind == "volume" {
		l.ever[e.id] = true
	}
	l.append("+", e)
}

func (l *ledger) drop(kind, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := entry{kind: kind, id: id}
	if n := len(l.have); n > 0 {
		if l.have = slices.DeleteFunc(l.have, e.is); len(l.have) < n {
			l.append("-", e)
		}
	}
}

func (e entry) is(o entry) bool { return e.kind == o.kind && e.id == o.id }

// append is best effort: without the file, only a killed run leaves something.
func (l *ledger) append(sign string, e entry) {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintln(f, line{sign, e})
}

// deleted says whether the bench had this volume and saw its deletion answered.
func (l *ledger) deleted(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ever[id] && !slices.ContainsFunc(l.have, entry{kind: "volume", id: id}.is)
}

// left is what is still there, snapshots before volumes.
func (l *ledger) left() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.have)
	order := []string{"group", "snapshot", "volume"}
	slices.SortStableFunc(out, func(a, b entry) int { return slices.Index(order, a.kind) - slices.Index(order, b.kind) })
	return out
}

// line is one of the file: what happened ("=", "+" or "-"), and to what.
type line struct {
	sign string
	entry
}

func (l line) String() string {
	s := l.sign + " " + l.kind
	for _, id := range append([]string{l.id}, l.members...) {
		s += " " + strconv.Quote(id)
	}
	return s
}

// parseLine is the opposite of String.
func parseLine(text string) (l line, ok bool) {
	var rest string
	if l.sign, rest, ok = strings.Cut(text, " "); !ok {
		return l, false
	}
	if l.kind, rest, ok = strings.Cut(rest, " "); !ok {
		return l, false
	}
	var ids []string
	for {
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return l, false
		}
		id, err := strconv.Unquote(quoted)
		if err != nil {
			return l, false
		}
		ids = append(ids, id)
		if rest = rest[len(quoted):]; rest == "" {
			break
		}
		if rest, ok = strings.CutPrefix(rest, " "); !ok {
			return l, false
		}
	}
	l.id, l.members = ids[0], ids[1:]
	return l, true
}

// readLedger reads what a killed run left, and in which driver; "" when that driver was the run's own and died with it.
func readLedger(path string) (driver string, left []entry) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", nil
	}
	l := newLedger(os.DevNull)
	for text := range strings.Lines(string(data)) {
		text, whole := strings.CutSuffix(text, "\n")
		read, ok := parseLine(text)
		if !whole || !ok {
			continue // the line that a death cut
		}
		switch read.sign {
		case "=":
			driver = read.id
		case "+":
			l.add(read.entry)
		case "-":
			l.drop(read.kind, read.id)
		}
	}
	return driver, l.left()
}
