package pool

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestChanged(t *testing.T) {
	const u = changedUnit
	for name, tc := range map[string]struct {
		add  [][2]int64 // offset, length
		size int64
		want []span
	}{
		"nothing":           {nil, 10 * u, nil},
		"rounded out":       {[][2]int64{{u + 1, 1}}, 10 * u, []span{{u, 2 * u}}},
		"over a boundary":   {[][2]int64{{u - 1, 2}}, 10 * u, []span{{0, 2 * u}}},
		"in any order":      {[][2]int64{{8 * u, u}, {0, u}, {4 * u, u}}, 10 * u, []span{{0, u}, {4 * u, 5 * u}, {8 * u, 9 * u}}},
		"touching":          {[][2]int64{{u, u}, {0, u}}, 10 * u, []span{{0, 2 * u}}},
		"one in another":    {[][2]int64{{0, 8 * u}, {2 * u, u}}, 10 * u, []span{{0, 8 * u}}},
		"beyond the end":    {[][2]int64{{8 * u, 8 * u}, {30 * u, u}}, 10 * u, []span{{8 * u, 10 * u}}},
		"everything":        {[][2]int64{{0, 1<<63 - 1}}, 10 * u, []span{{0, 10 * u}}},
		"beyond all sizes":  {[][2]int64{{1<<63 - 1, 1<<63 - 1}}, 10 * u, []span{}},
		"length of nothing": {[][2]int64{{2 * u, 0}}, 10 * u, []span{{2 * u, 2 * u}}},
	} {
		t.Run(name, func(t *testing.T) {
			var c changed
			for _, a := range tc.add {
				c.add(a[0], a[1])
			}
			got := c.take(tc.size)
			if !slices.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
			if left := c.take(10 * u); len(left) != 0 {
				t.Errorf("left after it was taken: %v", left)
			}
		})
	}
}

// However many are noted: every place is in what is taken, and little more is kept than what differs.
func TestChangedKeepsEveryPlace(t *testing.T) {
	const units = 1000
	var c changed
	var want [units]bool
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		at := r.Int64N(units)
		want[at] = true
		c.add(at*changedUnit+r.Int64N(changedUnit-512), 512)
		if len(c.spans) > 3*units+1<<12 {
			t.Fatalf("%d spans kept", len(c.spans))
		}
	}
	var got [units]bool
	for _, s := range c.take(units * changedUnit) {
		for at := s.Start; at < s.End; at += changedUnit {
			got[at/changedUnit] = true
		}
	}
	if got != want {
		t.Error("places differ")
	}
}

// Pieces cover each span, in order, and are joined where going through what lies between is cheaper than another piece.
func TestJoined(t *testing.T) {
	const density = 100.0 / float64(mib) // 100 extents in a MiB: 0.1 ms to go through
	spans := func(n int, apart int64) (out []span) {
		for i := range int64(n) {
			out = append(out, span{i * apart, i*apart + 4096})
		}
		return out
	}
	for name, tc := range map[string]struct {
		spans  []span
		pieces int
	}{
		"none":                {nil, 0},
		"one":                 {spans(1, mib), 1},
		"near":                {spans(5, mib), 1},
		"far apart":           {spans(5, 11*mib), 5},
		"more than one step":  {spans(100, mib), 4}, // each 60 µs and 0.1 ms
		"one that takes long": {[]span{{0, gib}, {gib + mib, gib + 2*mib}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			got := joined(tc.spans, 10*mib, 4*time.Millisecond, density)
			if len(got) != tc.pieces {
				t.Errorf("%d pieces, want %d: %v", len(got), tc.pieces, got)
			}
			for _, s := range tc.spans {
				if !slices.ContainsFunc(got, func(p span) bool { return p.Start <= s.Start && s.End <= p.End }) {
					t.Errorf("%v is in no piece", s)
				}
			}
		})
	}
}
