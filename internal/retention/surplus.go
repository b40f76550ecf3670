package retention

import (
	"cmp"
	"slices"
	"time"
)

// surplus are the snapshots that may go: of each claim those that are ready and older than the keep newest ready ones, the
// oldest first. What is not ready counts for nothing: a schedule that fails never pushes out what is good.
func surplus(all []made, keep int, now time.Time) []made {
	byClaim := map[string][]made{}
	for _, m := range all {
		if m.ready && !m.deleting {
			byClaim[m.of] = append(byClaim[m.of], m)
		}
	}
	var gone []made
	for _, of := range byClaim {
		slices.SortFunc(of, func(a, b made) int { return byAge(a, b, now) })
		if len(of) > keep {
			gone = append(gone, of[:len(of)-keep]...)
		}
	}
	slices.SortFunc(gone, func(a, b made) int { return cmp.Or(byAge(a, b, now), cmp.Compare(a.name, b.name)) })
	return gone
}

// byAge puts the older one first. One that is dated after now was made before the clock was set back, and so before all
// those that are dated rightly.
func byAge(a, b made, now time.Time) int {
	if fa, fb := a.at.After(now.Add(clockSlack)), b.at.After(now.Add(clockSlack)); fa != fb {
		if fa {
			return -1
		}
		return 1
	}
	return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.name, b.name))
}
