package try

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Where TMPDIR is too long for sockets below it, a run is in /tmp, and what a killed one leaves there is found, too.
func TestWhatAKilledRunLeavesIsFoundWithALongTMPDIR(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 20))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	work, lock, err := makeWork()
	if err != nil {
		t.Fatal(err)
	}
	lock.Close() // its process is dead
	t.Cleanup(func() { os.RemoveAll(work) })
	sweepFormer("", func(string) {})
	if _, err := os.Lstat(work); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", work, err)
	}
}

// Runs that begin at once take away what killed ones left, and never each other's new directory.
func TestRunsThatBeginAtOnce(t *testing.T) {
	shortTMPDIR(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				work, lock, err := makeWork()
				if err != nil {
					t.Error(err)
					return
				}
				sweepFormer(work, func(string) {})
				if _, err := os.Lstat(filepath.Join(work, "lock")); err != nil {
					t.Errorf("the directory of a run that lives: %v", err)
				}
				lock.Close()
			}
		})
	}
	all.Wait()
}

// shortTMPDIR is a TMPDIR in which runs are; the test's own is too long for their sockets.
func shortTMPDIR(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	t.Setenv("TMPDIR", base)
	return base
}

// killedRun is the directory of a run that was killed while a driver had something of it.
func killedRun(t *testing.T, driver string, left ...entry) string {
	t.Helper()
	work, lock, err := makeWork()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := os.MkdirAll(filepath.Join(work, "d", "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	l := newLedger(filepath.Join(work, ledgerName))
	l.begin(driver)
	for _, e := range left {
		l.add(e)
	}
	return work
}

// A killed run left something in one driver. Runs of other drivers take its files away, and do not forget what is owed; the next run of that
// driver takes it over, group members and all, and only then is nothing left to remember.
func TestWhatIsOwedToADriverOutlivesRunsOfOthers(t *testing.T) {
	base := shortTMPDIR(t)
	group := entry{kind: "group", id: "g", members: []string{"m1", "m2"}}
	killed := killedRun(t, "x.example.com", entry{kind: "volume", id: "v"}, group)
	var says []string
	say := func(s string) { says = append(says, s) }
	for run := range 3 {
		says = nil
		before := sweepFormer("", say)
		if got := before["x.example.com"]; len(got.Entries) != 2 || !slices.Equal(got.Entries[0].Members, group.members) || !slices.Equal(got.Dirs, []string{killed}) {
			t.Fatalf("run %d remembers %+v", run, before)
		}
		if took := strings.Contains(strings.Join(says, "\n"), "took away"); took != (run == 0) {
			t.Errorf("run %d says %q", run, says)
		}
		if _, err := os.Lstat(filepath.Join(killed, "d")); !os.IsNotExist(err) {
			t.Errorf("run %d left files behind: %v", run, err)
		}
		other := &bench{name: "y.example.com", ledger: newLedger(filepath.Join(base, "y"))}
		if err := other.takeOver(before); err != nil || len(other.former) > 0 {
			t.Errorf("another driver's run took over %v: %v", other.former, err)
		}
	}
	own := &bench{name: "x.example.com", ledger: newLedger(filepath.Join(base, "x"))}
	own.ledger.begin(own.name)
	if err := own.takeOver(sweepFormer("", say)); err != nil {
		t.Fatal(err)
	}
	if _, left := readLedger(filepath.Join(base, "x")); len(left) != 2 || left[0].String() != group.String() {
		t.Errorf("the driver's own run has noted %v", left)
	}
	if before := sweepFormer("", say); len(before) > 0 {
		t.Errorf("still remembered: %+v", before)
	}
	if _, err := os.Lstat(killed); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", killed, err)
	}
}

func FuzzLedgerLine(f *testing.F) {
	for _, s := range []string{`= driver "d"`, `+ group "g" "m1" "m2"`, `- volume "a\n"`, `+ volume "cut`, `+ volume "a""b"`, ``, `+`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, ok := parseLine(text)
		if !ok {
			return
		}
		again, ok := parseLine(l.String())
		if !ok || again.sign != l.sign || !again.is(l.entry) || !slices.Equal(again.members, l.members) {
			t.Errorf("%q is read as %+v, and as %+v when it is written again", text, l, again)
		}
	})
}
