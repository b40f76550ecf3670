package pool

import (
	"errors"
	"testing"

	"berth.io/berth/internal/host/xfs"
)

// list is a map in memory.
type list struct{ left []xfs.Extent }

func (l *list) Next() (xfs.Extent, bool, error) {
	if len(l.left) == 0 {
		return xfs.Extent{}, false, nil
	}
	e := l.left[0]
	l.left = l.left[1:]
	return e, true, nil
}

func data(logical, physical, length int64) xfs.Extent {
	return xfs.Extent{Logical: logical, Physical: physical, Length: length}
}

func unwritten(logical, physical, length int64) xfs.Extent {
	return xfs.Extent{Logical: logical, Physical: physical, Length: length, Unwritten: true}
}

func differ(t *testing.T, base, target []xfs.Extent, start, end int64) []span {
	t.Helper()
	var out []span
	err := differences(t.Context(), &list{base}, &list{target}, start, end, func(offset, length int64) error {
		out = append(out, span{offset, offset + length})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDifferences(t *testing.T) {
	for name, tc := range map[string]struct {
		base, target []xfs.Extent
		start        int64
		want         []span
	}{
		"nothing in both":                  {nil, nil, 0, nil},
		"all shared":                       {[]xfs.Extent{data(0, 500, 100)}, []xfs.Extent{data(0, 500, 100)}, 0, nil},
		"shared in other pieces":           {[]xfs.Extent{data(0, 500, 100)}, []xfs.Extent{data(0, 500, 30), data(30, 530, 70)}, 0, nil},
		"the same block at another place":  {[]xfs.Extent{data(0, 500, 10)}, []xfs.Extent{data(10, 500, 10)}, 0, []span{{0, 20}}},
		"written in the middle":            {[]xfs.Extent{data(0, 500, 100)}, []xfs.Extent{data(0, 500, 40), data(40, 900, 10), data(50, 550, 50)}, 0, []span{{40, 50}}},
		"written where nothing was":        {nil, []xfs.Extent{data(20, 900, 10)}, 0, []span{{20, 30}}},
		"discarded":                        {[]xfs.Extent{data(0, 500, 100)}, []xfs.Extent{data(0, 500, 40), data(60, 560, 40)}, 0, []span{{40, 60}}},
		"zeroed by an unwritten extent":    {[]xfs.Extent{data(0, 500, 100)}, []xfs.Extent{data(0, 500, 40), unwritten(40, 540, 60)}, 0, []span{{40, 100}}},
		"allocated and never written":      {nil, []xfs.Extent{unwritten(0, 500, 100)}, 0, nil},
		"an allocation that was written":   {[]xfs.Extent{unwritten(0, 500, 100)}, []xfs.Extent{data(0, 500, 50), unwritten(50, 550, 50)}, 0, []span{{0, 50}}},
		"neighbours are told as one":       {nil, []xfs.Extent{data(0, 500, 10), data(10, 900, 10)}, 0, []span{{0, 20}}},
		"begins in the middle":             {nil, []xfs.Extent{data(0, 500, 10), data(50, 900, 10)}, 5, []span{{5, 10}, {50, 60}}},
		"an extent beyond the end":         {nil, []xfs.Extent{data(90, 500, 50)}, 0, []span{{90, 100}}},
		"shared by both beyond a new part": {[]xfs.Extent{data(50, 550, 10)}, []xfs.Extent{data(0, 100, 10), data(50, 550, 10)}, 0, []span{{0, 10}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := differ(t, tc.base, tc.target, tc.start, 100)
			if len(got) != len(tc.want) {
				t.Fatalf("%v, want %v", got, tc.want)
			}
			for i := range got {
				if got[i] != tc.want[i] {
					t.Errorf("%v, want %v", got, tc.want)
				}
			}
		})
	}
}

// The first error of f ends it.
func TestDifferencesStop(t *testing.T) {
	stop, calls := errors.New("enough"), 0
	err := differences(t.Context(), none{}, &list{[]xfs.Extent{data(0, 1, 1), data(5, 1, 1)}}, 0, 10, func(int64, int64) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// Compared with what a byte for byte look at both maps finds.
func FuzzDifferences(f *testing.F) {
	f.Add([]byte{3, 5, 7, 2}, []byte{3, 5, 7, 3, 1, 9}, uint8(0))
	f.Add([]byte{0, 20, 1, 0, 10, 0}, []byte{0, 10, 2, 5, 5, 1}, uint8(13))
	f.Fuzz(func(t *testing.T, a, b []byte, start uint8) {
		const end = 256
		base, target := extentsFrom(a), extentsFrom(b)
		if int64(start) > end {
			return
		}
		want := make([]bool, end)
		before, after := blocksOf(base, end), blocksOf(target, end)
		for i := int64(start); i < end; i++ {
			want[i] = before[i] != after[i]
		}
		got, last := make([]bool, end), int64(-1)
		for _, s := range differ(t, base, target, int64(start), end) {
			if s.Start <= last || s.End <= s.Start || s.End > end || s.Start < int64(start) {
				t.Fatalf("range %v after one that ends at %d", s, last)
			}
			last = s.End // two that touch would be one
			for i := s.Start; i < s.End; i++ {
				got[i] = true
			}
		}
		for i := range want {
			if want[i] != got[i] {
				t.Fatalf("at %d: told %v, want %v\nbase %v\ntarget %v", i, got[i], want[i], base, target)
			}
		}
	})
}

// extentsFrom makes a map of triples: gap, length, and where.
func extentsFrom(b []byte) []xfs.Extent {
	var out []xfs.Extent
	at := int64(0)
	for ; len(b) >= 3; b = b[3:] {
		at += int64(b[0] % 8)
		length := int64(b[1]%32) + 1
		out = append(out, xfs.Extent{Logical: at, Physical: at + int64(b[2]%3)*1000, Length: length, Unwritten: b[2]&0x80 != 0})
		at += length
	}
	return out
}

func blocksOf(m []xfs.Extent, end int64) []int64 {
	out := make([]int64, end)
	for i := range out {
		out[i] = zeros
	}
	for _, e := range m {
		for i := e.Logical; i < min(e.Logical+e.Length, end) && !e.Unwritten; i++ {
			out[i] = e.Physical + i - e.Logical
		}
	}
	return out
}
