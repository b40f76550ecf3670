package trace

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func testEntry(volume string) Entry {
	return Entry{Step: Bound, State: Done, Volume: volume, Claim: ObjectRef{Namespace: "ns", Name: "c", UID: "u"}, Detail: "a detail with \"quotes\"\nand a line break"}
}

func volumes(entries []Entry) string {
	var names []string
	for _, e := range entries {
		names = append(names, e.Volume)
	}
	return strings.Join(names, " ")
}

func mustOpen(t *testing.T, dir string, size int64, count int) *Journal {
	t.Helper()
	j, err := open(dir, nil, size, count)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func mustRead(t *testing.T, dir string, f Filter) []Entry {
	t.Helper()
	entries, err := Read(dir, f)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// TestNilJournal: rooms run without one in their tests.
func TestNilJournal(t *testing.T) {
	var j *Journal
	j.Record(testEntry("v"))
	j.Flush()
	j.Follow(func(Entry) {})()
	if j.Lost() != 0 || j.Close() != nil {
		t.Error("a nil journal does something")
	}
}

// TestReadWhileWritten: another reader sees what is flushed, across a restart, in order.
func TestReadWhileWritten(t *testing.T) {
	dir := t.TempDir()
	if got := mustRead(t, dir, Filter{}); len(got) != 0 {
		t.Fatalf("a directory without a journal has entries: %v", got)
	}
	j := mustOpen(t, dir, segmentSize, segmentCount)
	j.Record(testEntry("v1"))
	j.Flush()
	if got := volumes(mustRead(t, dir, Filter{})); got != "v1" {
		t.Fatalf("read %q", got)
	}
	j.Record(testEntry("v2"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, dir, segmentSize, segmentCount)
	j.Record(testEntry("v3"))
	j.Flush()
	got := mustRead(t, dir, Filter{})
	if volumes(got) != "v1 v2 v3" {
		t.Fatalf("read %q", volumes(got))
	}
	want := testEntry("v3")
	want.Time = got[2].Time
	if got[2] != want {
		t.Errorf("read %+v, want %+v", got[2], want)
	}
}

// TestTornLine: kill -9 in the middle of a write; what was written before and after is there.
func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir, segmentSize, segmentCount)
	j.Record(testEntry("v1"))
	j.Record(testEntry("v2"))
	j.Close()
	path := (&segments{dir: dir}).path(1)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data[:len(data)-30], 0o600); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, dir, segmentSize, segmentCount)
	j.Record(testEntry("v3"))
	j.Flush()
	if got := volumes(mustRead(t, dir, Filter{})); got != "v1 v3" {
		t.Errorf("read %q", got)
	}
}

// TestRotation: the youngest segments stay, the total is bounded.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir, 2000, 3)
	for i := range 200 {
		j.Record(testEntry(fmt.Sprintf("v%d", i)))
		j.Flush()
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 3 {
		t.Fatalf("%d segments: %v", len(files), files)
	}
	got := mustRead(t, dir, Filter{})
	if n := len(got); n < 20 || got[n-1].Volume != "v199" || got[0].Volume != fmt.Sprintf("v%d", 200-n) {
		t.Errorf("%d entries, %s … %s", n, got[0].Volume, got[n-1].Volume)
	}
}

// TestFilter: by name and by time; what was lost is always told.
func TestFilter(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir, segmentSize, segmentCount)
	old := testEntry("v1")
	old.Time = time.Now().Add(-time.Hour)
	j.Record(old)
	j.Record(testEntry("v2"))
	j.lost.Add(7)
	j.Flush()
	if got := volumes(mustRead(t, dir, Filter{Naming: []string{"v1"}})); got != "v1 " {
		t.Errorf("naming: %q", got)
	}
	if got := volumes(mustRead(t, dir, Filter{Since: time.Now().Add(-time.Minute)})); got != "v2 " {
		t.Errorf("since: %q", got)
	}
	lost := mustRead(t, dir, Filter{Naming: []string{"nothing"}})
	if len(lost) != 1 || lost[0].Step != Lost || lost[0].Detail != "7 entries did not reach the journal" {
		t.Errorf("lost: %v", lost)
	}
}

// TestRecordNeverBlocks: more than the queue holds, while the writer cannot run; the oldest are kept and the loss is
// counted and told.
func TestRecordNeverBlocks(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir, 64<<20, segmentCount)
	var hold sync.Mutex
	hold.Lock()
	end := j.Follow(func(Entry) { hold.Lock(); defer hold.Unlock() })
	j.Record(testEntry("first")) // the writer takes it and stands still
	for range 3 * queueLength {
		j.Record(testEntry("v"))
	}
	lost := j.Lost()
	if lost == 0 {
		t.Fatal("nothing was lost: the queue has no bound")
	}
	hold.Unlock()
	j.Flush()
	end()
	entries := mustRead(t, dir, Filter{})
	kept, told := 0, 0
	for _, e := range entries {
		if e.Step == Lost {
			var n int
			fmt.Sscanf(e.Detail, "%d", &n)
			told += n
		} else {
			kept++
		}
	}
	if uint64(told) != lost || kept+told != 3*queueLength+1 {
		t.Errorf("kept %d, told %d lost, counted %d", kept, told, lost)
	}
}

// TestFollow: the instance prints the journey as it happens.
func TestFollow(t *testing.T) {
	j := mustOpen(t, t.TempDir(), segmentSize, segmentCount)
	var got []string
	end := j.Follow(func(e Entry) { got = append(got, e.Volume) })
	j.Record(testEntry("v1"))
	j.Flush()
	end()
	j.Record(testEntry("v2"))
	j.Flush()
	if strings.Join(got, " ") != "v1" {
		t.Errorf("followed %v", got)
	}
}

func BenchmarkRecord(b *testing.B) {
	j, err := Open(b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	e := testEntry("v")
	b.ReportAllocs()
	for b.Loop() {
		j.Record(e)
	}
}

// FuzzParseLine: whatever stands in a segment, a line is an entry or it is not; an entry survives being written again.
func FuzzParseLine(f *testing.F) {
	line, _ := json.Marshal(testEntry("v"))
	f.Add(line)
	f.Add(line[:len(line)/2])
	f.Add([]byte("\n"))
	f.Add([]byte(`{"time":"2026-01-01T00:00:00Z","step":"Bound","state":"Done","claim":{"name":1}}`))
	f.Add([]byte(`{"time":"+292277026596-12-04T15:30:08Z","step":"a","state":"b"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := parseLine(line)
		if !ok {
			return
		}
		again, err := json.Marshal(&e)
		if err != nil {
			t.Fatalf("an entry cannot be written: %v", err)
		}
		if bytes.ContainsRune(again, '\n') {
			t.Fatalf("a line break in %s", again)
		}
		if f, ok := parseLine(again); !ok || !f.Time.Equal(e.Time) || f.Detail != e.Detail {
			t.Fatalf("%+v became %+v", e, f)
		}
	})
}
