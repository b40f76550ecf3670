package pool

import "slices"

// span is [Start, End) in bytes of the pool file.
type span struct{ Start, End int64 }

// subtract returns what of from is in none of the cuts, in order. The inputs may be in any order and overlap.
func subtract(from []span, cuts []span) []span {
	from, cuts = slices.Clone(from), slices.Clone(cuts)
	byStart := func(a, b span) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	}
	slices.SortFunc(from, byStart)
	slices.SortFunc(cuts, byStart)
	var out []span
	for _, f := range from {
		at := f.Start
		for _, c := range cuts {
			if c.End <= at || c.End <= c.Start {
				continue
			}
			if c.Start >= f.End {
				break
			}
			if c.Start > at {
				out = append(out, span{at, c.Start})
			}
			at = max(at, c.End)
		}
		if at < f.End {
			out = append(out, span{at, f.End})
		}
	}
	return out
}
