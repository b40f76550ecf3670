package try

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// stepDef is a step that can be chosen.
type stepDef struct {
	name, group, title string
	instance           bool // needs the private instance
	run                func(*bench, context.Context, *Step) error
}

// The groups of steps, which --only and --skip take as well as names.
const (
	groupProtocol = "protocol" // RPCs that the bench makes itself
	groupSanity   = "sanity"
	groupFlow     = "flow" // through the API
	groupFaults   = "faults"
)

// first is the step that all others need.
const first = "identity"

// allSteps in the order of a run: while the instance starts, what does without it is done.
func allSteps() []stepDef {
	return []stepDef{
		{first, groupProtocol, "who the driver is and what it promises", false, (*bench).stepIdentity},
		{"access", groupProtocol, "which kinds of volume it makes", false, (*bench).stepAccess},
		{"promises", groupProtocol, "every RPC that it promises is there", false, (*bench).stepPromises},
		{"idempotency", groupProtocol, "the same request again", false, (*bench).stepIdempotency},
		{"paging", groupProtocol, "ListVolumes page by page", false, (*bench).stepPaging},
		{"csi-sanity", groupSanity, "the official conformance suite", false, (*bench).stepSanity},
		{"provision", groupFlow, "claim → volume", true, (*bench).stepProvision},
		{"mount", groupFlow, "pod → attached, mounted, written", true, (*bench).stepMount},
		{"remount", groupFlow, "the data after detach and attach", true, (*bench).stepRemount},
		{"restart", groupFlow, "driver and node agent restarted under a mounted volume", true, (*bench).stepRestart},
		{"read-only", groupFlow, "a read-only volume is read-only", true, (*bench).stepReadOnly},
		{"expand-online", groupFlow, "larger while mounted", true, (*bench).stepExpandOnline},
		{"expand-offline", groupFlow, "larger while nobody uses it", true, (*bench).stepExpandOffline},
		{"snapshot", groupFlow, "snapshot, written on, restored", true, (*bench).stepSnapshot},
		{"clone", groupFlow, "claim from a claim", true, (*bench).stepClone},
		{"block", groupFlow, "raw block volume", true, (*bench).stepBlock},
		{"ephemeral", groupFlow, "inline ephemeral volume", true, (*bench).stepEphemeral},
		{"group-snapshot", groupFlow, "two volumes at one instant", true, (*bench).stepGroupSnapshot},
		{"rwx", groupFlow, "ReadWriteMany: two pods write", true, (*bench).stepRWX},
		{"rox", groupFlow, "ReadOnlyMany: two pods read", true, (*bench).stepROX},
		{"rwop", groupFlow, "ReadWriteOncePod", true, (*bench).stepRWOP},
		{"fault-kill", groupFaults, "driver killed in each RPC", true, (*bench).stepKill},
		{"fault-late", groupFaults, "each RPC delayed past its deadline", true, (*bench).stepLate},
		{"fault-lost", groupFaults, "each answer lost", true, (*bench).stepLost},
		{"fault-twice", groupFaults, "each RPC sent twice", true, (*bench).stepTwice},
		{"fault-node", groupFaults, "node restarted while a volume is staged", true, (*bench).stepNodeRestart},
		{"scale", groupFaults, "one volume, then many at once", true, (*bench).stepScale},
	}
}

// StepNames are what --only and --skip take.
func StepNames() []string {
	names := []string{groupProtocol, groupSanity, groupFlow, groupFaults}
	for _, s := range allSteps() {
		names = append(names, s.name)
	}
	return names
}

// selectSteps returns the steps of a run in their order. The first one is always among them.
func selectSteps(only, skip []string) ([]stepDef, error) {
	for _, n := range slices.Concat(only, skip) {
		if !slices.Contains(StepNames(), n) {
			return nil, usagef("there is no step %q; the steps are:\n%s", n, listSteps())
		}
	}
	in := func(s stepDef, list []string) bool {
		return slices.Contains(list, s.name) || slices.Contains(list, s.group)
	}
	var chosen []stepDef
	for _, s := range allSteps() {
		if s.name == first || (len(only) == 0 || in(s, only)) && !in(s, skip) {
			chosen = append(chosen, s)
		}
	}
	return chosen, nil
}

func listSteps() string {
	var b strings.Builder
	group := ""
	for _, s := range allSteps() {
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "  %s\n", group)
		}
		fmt.Fprintf(&b, "    %-15s %s\n", s.name, s.title)
	}
	return strings.TrimRight(b.String(), "\n")
}

func needInstance(steps []stepDef) bool {
	return slices.ContainsFunc(steps, func(s stepDef) bool { return s.instance })
}
