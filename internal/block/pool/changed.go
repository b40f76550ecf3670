package pool

import (
	"slices"
	"time"
)

// changed collects the places of a file that were written.
type changed struct {
	spans []span
	// merged is how many of them were there after the last merge: what is added doubles before the next one.
	merged int
}

// changedUnit is what places are rounded out to: the largest block that an XFS can have, since no less can be shared.
const changedUnit = 64 << 10

// add notes a range. One beyond all sizes is everything.
func (c *changed) add(offset, length int64) {
	const most = int64(1) << 62
	end := most
	if offset < most && length < most-offset {
		end = offset + length
	}
	c.spans = append(c.spans, span{offset / changedUnit * changedUnit, (end + changedUnit - 1) / changedUnit * changedUnit})
	if len(c.spans) > max(2*c.merged, 1<<12) {
		c.spans = merge(c.spans)
		c.merged = len(c.spans)
	}
}

// take returns what was noted, within a file of so many bytes, and forgets it.
func (c *changed) take(size int64) []span {
	all := merge(c.spans)
	*c = changed{}
	for i, s := range all {
		if s.Start >= size {
			return all[:i]
		}
		all[i].End = min(s.End, size)
	}
	return all
}

// merge sorts spans and joins those that touch or overlap.
func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && s.Start <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, s.End)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// joined makes pieces of written spans, in order, so that going through them costs least: two with less than gap bytes between them
// are one piece, which goes through what lies between; none shall take longer than step. density is how many extents a byte has.
func joined(spans []span, gap int64, step time.Duration, density float64) []span {
	var out []span
	var cost time.Duration // of the last one
	for _, s := range spans {
		own := writtenCost + time.Duration(float64(s.End-s.Start)*density*float64(sharedCost))
		if n := len(out); n > 0 {
			between := s.Start - out[n-1].End
			more := own + time.Duration(float64(between)*density*float64(sharedCost))
			if between < gap && cost+more <= step {
				out[n-1].End, cost = s.End, cost+more
				continue
			}
		}
		out, cost = append(out, s), own
	}
	return out
}
