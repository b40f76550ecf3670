package attach

import (
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	wanted := func(s situation) situation { s.wanted, s.nodeReady = true, true; return s }
	leaving := func(s situation) situation {
		s.keepsUse, s.nodeReady, s.forceAfter = true, true, 6*time.Minute
		return s
	}
	kubelet := func(s situation) situation { s.nodeReady, s.forceAfter = true, 6*time.Minute; return s }
	lost := func(s situation) situation { s.keepsUse, s.forceAfter = true, 6*time.Minute; return s }
	for name, c := range map[string]struct {
		s      situation
		next   step
		forced string
	}{
		"wanted and nowhere":                        {wanted(situation{}), doAttach, ""},
		"wanted and perhaps attached":               {wanted(situation{actual: uncertain}), doAttach, ""},
		"wanted and attached, not yet told":         {wanted(situation{actual: attached}), report, ""},
		"wanted and attached and told":              {wanted(situation{actual: attached, reported: true}), rest, ""},
		"wanted, exclusive, elsewhere":              {wanted(situation{exclusive: true, elsewhere: true}), refuse, ""},
		"wanted, shared, elsewhere":                 {wanted(situation{elsewhere: true}), doAttach, ""},
		"wanted, exclusive, here and elsewhere":     {wanted(situation{exclusive: true, elsewhere: true, actual: attached, reported: true}), rest, ""},
		"wanted, exclusive, elsewhere, uncertain":   {wanted(situation{exclusive: true, elsewhere: true, actual: uncertain}), refuse, ""},
		"unwanted and nowhere":                      {leaving(situation{}), rest, ""},
		"unwanted, attached, in use":                {leaving(situation{actual: attached, reported: true, inUse: true}), unreport, ""},
		"a kubelet's, in use":                       {kubelet(situation{actual: attached, reported: true, inUse: true}), waitUse, ""},
		"a kubelet's, free":                         {kubelet(situation{actual: attached, reported: true}), unreport, ""},
		"a kubelet's, taken out, persisted":         {kubelet(situation{actual: attached}), doDetach, ""},
		"a kubelet's, lost six minutes ago":         {situation{actual: attached, reported: true, inUse: true, waited: 6 * time.Minute, forceAfter: 6 * time.Minute}, unreport, forcedByTimeout},
		"unwanted, in use, not persisted":           {leaving(situation{actual: attached, persists: true, inUse: true}), waitWrite, ""},
		"unwanted, attached, free":                  {leaving(situation{actual: attached, reported: true}), unreport, ""},
		"unwanted, taken out, not persisted":        {leaving(situation{actual: attached, persists: true}), waitWrite, ""},
		"unwanted, taken out, persisted":            {leaving(situation{actual: attached}), doDetach, ""},
		"unwanted, taken out, in use":               {leaving(situation{actual: attached, inUse: true}), waitUse, ""},
		"uncertain and unwanted":                    {leaving(situation{actual: uncertain}), doDetach, ""},
		"node lost a minute ago":                    {lost(situation{actual: attached, inUse: true, waited: time.Minute}), waitUse, ""},
		"node lost six minutes ago, still reported": {lost(situation{actual: attached, reported: true, inUse: true, waited: 6 * time.Minute}), unreport, forcedByTimeout},
		"node lost six minutes ago":                 {lost(situation{actual: attached, inUse: true, waited: 6 * time.Minute}), doDetach, forcedByTimeout},
		"force detach switched off":                 {situation{actual: attached, inUse: true, waited: time.Hour}, waitUse, ""},
		"a ready node is waited for without an end": {leaving(situation{actual: attached, inUse: true, waited: time.Hour}), waitUse, ""},
		"out of service, in use":                    {lost(situation{actual: attached, inUse: true, outOfService: true}), doDetach, forcedByTaint},
		"out of service, first out of the status":   {lost(situation{actual: attached, reported: true, inUse: true, outOfService: true}), unreport, forcedByTaint},
		"evidence that the node's boot is another":  {leaving(situation{actual: attached, inUse: true, evidence: "it rebooted"}), doDetach, forcedByEvidence},
		"the Node object is gone":                   {lost(situation{actual: attached, reported: true, nodeGone: true}), doDetach, ""},
		"the Node object is gone, was in use":       {lost(situation{actual: attached, reported: true, inUse: true, nodeGone: true, waited: time.Minute}), waitUse, ""},
		"the Node object is gone for six minutes":   {lost(situation{actual: attached, reported: true, inUse: true, nodeGone: true, waited: 6 * time.Minute}), doDetach, forcedByTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			if next, forced := decide(c.s); next != c.next || forced != c.forced {
				t.Errorf("got %d %q, want %d %q", next, forced, c.next, c.forced)
			}
		})
	}
}

// No situation of all that there are leads to a detach of a volume that is wanted, or that a living node uses or still
// reads in its status.
func TestDecideNeverTakesAwayWhatIsUsed(t *testing.T) {
	flags := 1 << 11
	for _, actual := range []attachment{detached, uncertain, attached} {
		for f := range flags {
			bit := func(i int) bool { return f&(1<<i) != 0 }
			s := situation{actual: actual, wanted: bit(0), reported: bit(1), persists: bit(2), exclusive: bit(3), elsewhere: bit(4), inUse: bit(5),
				nodeGone: bit(6), nodeReady: bit(7), outOfService: bit(8), keepsUse: bit(10), forceAfter: 6 * time.Minute}
			if bit(9) {
				s.waited = time.Hour
			}
			next, forced := decide(s)
			if next == unreport && s.inUse && !s.keepsUse && forced == "" {
				t.Fatalf("out of a kubelet's status while it is mounted: %+v", s)
			}
			if next != doDetach {
				continue
			}
			switch {
			case s.wanted:
				t.Fatalf("wanted volume detached: %+v", s)
			case s.inUse && forced == "":
				t.Fatalf("used volume detached: %+v", s)
			case (s.reported || s.persists) && !s.nodeGone:
				t.Fatalf("detached before the node's status said so: %+v", s)
			case forced == forcedByTimeout && s.nodeReady:
				t.Fatalf("ready node not waited for: %+v", s)
			}
		}
	}
}
