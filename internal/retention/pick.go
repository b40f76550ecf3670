package retention

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// made is a snapshot, or a group snapshot, that a schedule has made.
type made struct {
	name string
	uid  types.UID
	// of is the claim's name; "" for a group snapshot.
	of    string
	group bool
	at    time.Time // the time of the schedule
	// ready to be restored; failed: not ready, with an error; neither: under way.
	ready, failed, deleting bool
	why                     string // the error
}

// picks is what a run makes: a snapshot of each claim, in place of failed ones.
type picks struct {
	make []string // claims; "" is the group
	drop []made   // failed ones, that a new one takes the place of
	// busy are the claims that are left out, as their last snapshot is still under way.
	busy []made
}

// pick decides of what a run at due makes snapshots. At most one snapshot of a schedule and a claim is not ready, so that
// those of a driver that fails or hangs do not pile up.
func pick(claims []string, all []made, due time.Time) picks {
	var p picks
	for _, claim := range claims {
		var open *made
		there := false
		for i, m := range all {
			if m.of != claim || m.deleting {
				continue
			}
			if m.at.Equal(due) {
				there = true // by a run that was interrupted
			}
			if !m.ready && (open == nil || m.at.After(open.at)) {
				open = &all[i]
			}
		}
		switch {
		case there:
		case open != nil && !open.failed:
			p.busy = append(p.busy, *open)
		default:
			p.make = append(p.make, claim)
		}
		if there || open == nil || open.failed {
			for _, m := range all {
				if m.of == claim && m.failed && !m.deleting && m.at.Before(due) {
					p.drop = append(p.drop, m)
				}
			}
		}
	}
	return p
}

// maxName is the longest name of an object.
const maxName = 253

// nameOf is the same for the same schedule, claim and time, however often it is asked for, and never the same for others:
// the hash is of what the readable part may share.
func nameOf(schedule string, scheduleUID types.UID, claim string, due time.Time) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s/%s/%d", scheduleUID, claim, due.Unix())))
	end := "-" + due.UTC().Format("20060102-150405") + "-" + hex.EncodeToString(sum[:4])
	begin := schedule
	if claim != "" {
		begin += "-" + claim
	}
	if len(begin)+len(end) > maxName {
		begin = begin[:maxName-len(end)]
		for begin[len(begin)-1] == '.' || begin[len(begin)-1] == '-' {
			begin = begin[:len(begin)-1]
		}
	}
	return begin + end
}
