package mount

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Whatever order pods come and go in, and whatever fails, each step is legal when it is taken, and in the end what is wanted is mounted and
// nothing else is there. The driver is a naive model that knows only what CSI allows.
func TestNextSimulated(t *testing.T) {
	for seed := range uint64(300) {
		if err := simulate(rand.New(rand.NewPCG(seed, 1))); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func simulate(r *rand.Rand) error {
	var modes []v1.PersistentVolumeAccessMode
	if r.IntN(2) == 0 {
		modes = append(modes, v1.ReadWriteOncePod)
	}
	v := machineVolume(modes...)
	w := world{now: anytime, complete: r.IntN(3) > 0, controllerAttaches: true}
	pods := []types.UID{"a", "b", "c"}
	// What is really there; what the machine believes may only be more.
	staged, published := r.IntN(2) == 0, map[types.UID]bool{}
	if staged {
		v.stage = uncertain
	}
	for turn := 0; turn < 400; turn++ {
		quiet := turn >= 250 // from here on nothing changes and nothing fails
		if !quiet {
			switch p := pods[r.IntN(3)]; r.IntN(12) {
			case 0:
				if v.uses[p] == nil {
					v.with(p, true, absent)
				}
			case 1:
				if u := v.uses[p]; u != nil {
					u.desired = false
				}
			case 2:
				w.reported, w.attached = r.IntN(2) == 0, r.IntN(2) == 0
			case 3:
				w.complete = true
			}
		} else {
			w.complete, w.reported, w.attached = true, true, true
		}
		w.now = w.now.Add(time.Duration(r.IntN(60)) * time.Second)
		d := next(v, w)
		// 0: success; 1: refused; 2: unknown, not done; 3: unknown, done.
		outcome := r.IntN(4)
		if quiet {
			outcome = 0
		}
		done, refused := outcome == 0 || outcome == 3, outcome == 1
		now := w.now
		u := d.use
		switch d.step {
		case doStage:
			if !w.reported || !w.attached {
				return errors.New("staged without being reported and attached")
			}
			staged = staged || done
			if v.stage = settle(v.stage, outcome, refused); outcome != 0 {
				v.back.fail(now)
			} else {
				v.back.reset()
			}
		case doPublish:
			if !staged {
				return errors.New("published what is not staged")
			}
			if len(modes) > 0 {
				for p := range published {
					if published[p] && p != u.pod {
						return fmt.Errorf("published read-write-once-pod in %s beside %s", u.pod, p)
					}
				}
			}
			published[u.pod] = published[u.pod] || done
			if u.state = settle(u.state, outcome, refused); outcome != 0 {
				u.back.fail(now)
			} else {
				u.back.reset()
			}
		case doUnpublish:
			if !w.complete || u.desired {
				return errors.New("unpublished what is wanted, or before the pods were complete")
			}
			if done {
				published[u.pod] = false
			}
			if outcome == 0 {
				u.state = absent
			} else {
				u.state = uncertain
				u.back.fail(now)
			}
		case doUnstage:
			if !w.complete || slices.ContainsFunc(pods, func(p types.UID) bool { return published[p] }) {
				return errors.New("unstaged what is published")
			}
			if done {
				staged = false
			}
			if outcome == 0 {
				v.stage = absent
				v.back.reset()
			} else {
				v.stage = uncertain
				v.back.fail(now)
			}
		case doDrop:
			if published[u.pod] {
				return errors.New("dropped what is published")
			}
			delete(v.uses, u.pod)
		case doForget:
			if staged || slices.ContainsFunc(pods, func(p types.UID) bool { return published[p] }) {
				return errors.New("forgot what is there")
			}
			if len(v.uses) > 0 {
				return errors.New("forgot a volume with uses")
			}
		}
	}
	wanted := v.wanted()
	count := 0
	for _, p := range pods {
		u := v.uses[p]
		if published[p] != (u != nil && u.desired && u.state == present) {
			return fmt.Errorf("in the end %s: published %v, use %+v", p, published[p], u)
		}
		if published[p] {
			count++
		}
	}
	switch {
	case staged != wanted:
		return fmt.Errorf("in the end: staged %v, wanted %v", staged, wanted)
	case wanted && count == 0:
		return errors.New("in the end nothing is published although it is wanted")
	case wanted && len(modes) == 0 && count != len(v.uses):
		return fmt.Errorf("in the end %d of %d are published", count, len(v.uses))
	}
	return nil
}

// settle is what the manager believes after a step towards presence.
func settle(was presence, outcome int, refused bool) presence {
	switch {
	case outcome == 0:
		return present
	case refused:
		return was
	case was == present:
		return present
	}
	return uncertain
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"node":"n","volumes":[{"name":"v","pods":[{"uid":"u"}]}]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) { _, _, _ = parseJournal(data) })
}

func FuzzNewer(f *testing.F) {
	f.Add("1", "2")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, a, b string) {
		if newer(a, b) && newer(b, a) {
			t.Errorf("%q and %q are both newer", a, b)
		}
	})
}
