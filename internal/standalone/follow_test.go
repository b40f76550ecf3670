package standalone

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/trace"
)

// What happened while the journal was read is printed in its place, each step once.
func TestJourneyIsPrintedInOrder(t *testing.T) {
	began := time.Now()
	var out bytes.Buffer
	j := &journeyPrinter{say: newProgress(&out, began), uids: map[types.UID]bool{"c": true}, holding: true}
	entry := func(ms int, step trace.Step, uid types.UID) trace.Entry {
		return trace.Entry{Time: began.Add(time.Duration(ms) * time.Millisecond), Step: step, State: trace.Done, Claim: trace.ObjectRef{Name: "data", UID: uid}}
	}
	j.entry(entry(20, trace.Scheduled, "c"))
	j.entry(entry(21, trace.Bound, "another"))
	j.release([]trace.Entry{entry(10, trace.Claimed, "c"), entry(20, trace.Scheduled, "c"), entry(15, trace.Provisioned, "another")})
	j.entry(entry(20, trace.Scheduled, "c"))
	j.entry(entry(30, trace.Attached, "c"))
	var steps []string
	for line := range strings.Lines(out.String()) {
		steps = append(steps, strings.Fields(line)[1])
	}
	if got := strings.Join(steps, " "); got != "Claimed Scheduled Attached" {
		t.Errorf("printed %s", got)
	}
}
