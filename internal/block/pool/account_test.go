package pool

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestPlanForBacksWhatIsPromised(t *testing.T) {
	start := account{limit: 100 * gib, log: 64 * mib, size: 4 * gib}
	for name, tc := range map[string]struct {
		a       account
		promise int64
		ok      bool
	}{
		"fits already":           {start, gib, true},
		"one growth":             {start, 20 * gib, true},
		"almost the limit":       {start, 95 * gib, true},
		"the limit to the byte":  {start, start.usable(100 * gib), true},
		"one MiB beyond":         {start, start.usable(100*gib) + mib, false},
		"from the ballast":       {account{limit: 8 * gib, log: 64 * mib, size: 8 * gib, ballast: 6 * gib}, 5 * gib, true},
		"ballast and growth":     {account{limit: 16 * gib, log: 64 * mib, size: 8 * gib, ballast: 6 * gib}, 12 * gib, true},
		"beyond a lowered limit": {account{limit: 2 * gib, log: 64 * mib, size: 8 * gib, ballast: 4 * gib}, 5 * gib, false},
		"an odd limit":           {account{limit: 5*gib + 3*quantum, log: 64 * mib, size: 4 * gib}, start.usable(5*gib + 3*quantum), true},
	} {
		t.Run(name, func(t *testing.T) {
			p, ok := tc.a.planFor(tc.promise)
			if ok != tc.ok {
				t.Fatalf("possible: %v, want %v", ok, tc.ok)
			}
			if !ok {
				return
			}
			a := tc.a
			a.deflated(p.deflate)
			a.grown(p.growTo)
			if a.usable(a.backed()) < tc.promise {
				t.Errorf("%d usable of %d backed, %d promised", a.usable(a.backed()), a.backed(), tc.promise)
			}
			if a.backed() > max(tc.a.limit, tc.a.backed()) {
				t.Errorf("backed %d is beyond the limit %d", a.backed(), tc.a.limit)
			}
		})
	}
}

func TestBackingForIsTheSmallest(t *testing.T) {
	a := account{log: 64 * mib}
	for _, promised := range []int64{0, 1, mib, 100 * mib, gib - 1, gib, 33 * gib, 1 << 44} {
		b := a.backingFor(promised)
		if a.usable(b) < promised || b > quantum && a.usable(b-quantum) >= promised {
			t.Errorf("backing for %d: %d, usable %d (a quantum less: %d)", promised, b, a.usable(b), a.usable(b-quantum))
		}
	}
}

// Whatever happens in whatever order, the promise holds.
func TestPromiseHoldsInAnyOrder(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		a := account{limit: 64 * gib, log: 64 * mib, size: 4 * gib}
		var held []int64
		for range 300 {
			switch rng.IntN(4) {
			case 0, 1:
				n := rng.Int64N(8*gib/mib) * mib
				if !a.reserve(n) {
					p, ok := a.planFor(a.reserved + n)
					if !ok {
						break
					}
					a.deflated(p.deflate)
					a.grown(p.growTo)
					if !a.reserve(n) {
						t.Fatalf("seed %d: no room for %d after the plan %+v: %+v", seed, n, p, a)
					}
				}
				held = append(held, n)
			case 2:
				if len(held) > 0 {
					i := rng.IntN(len(held))
					a.release(held[i])
					held = slices.Delete(held, i, i+1)
				}
			case 3:
				a.takeBack(a.backed(), a.headroom())
			}
			if err := a.check(); err != nil {
				t.Fatalf("seed %d: %v: %+v", seed, err, a)
			}
			if a.ballast < 0 || a.backed() > a.limit {
				t.Fatalf("seed %d: %+v", seed, a)
			}
		}
	}
}

func TestInitialSize(t *testing.T) {
	for limit, want := range map[int64][2]int64{
		512 * mib:  {512 * mib, 128 * mib},
		10 * gib:   {4 * gib, gib},
		1024 * gib: {64 * gib, 16 * gib},
	} {
		if size, group := initialSize(limit); size != want[0] || group != want[1] {
			t.Errorf("limit %d: %d, groups of %d; want %v", limit, size, group, want)
		}
	}
}

func FuzzSubtract(f *testing.F) {
	f.Add(uint64(1), 3, 3)
	f.Fuzz(func(t *testing.T, seed uint64, n, m int) {
		rng := rand.New(rand.NewPCG(seed, 2))
		const size = 64
		random := func(n int) (spans []span, in [size]bool) {
			for range min(max(n, 0), 8) {
				s := rng.Int64N(size)
				e := s + rng.Int64N(size-s+1)
				spans = append(spans, span{s, e})
				for i := s; i < e; i++ {
					in[i] = true
				}
			}
			return spans, in
		}
		from, inFrom := random(n)
		cuts, inCuts := random(m)
		var got [size]bool
		for _, s := range subtract(from, cuts) {
			if s.End <= s.Start {
				t.Fatalf("empty span %v", s)
			}
			for i := s.Start; i < s.End; i++ {
				got[i] = true
			}
		}
		for i := range size {
			if got[i] != (inFrom[i] && !inCuts[i]) {
				t.Fatalf("%v minus %v: byte %d", from, cuts, i)
			}
		}
	})
}
