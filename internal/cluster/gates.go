package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
)

// gate is a feature gate that a sidecar has, or had.
type gate struct {
	// library: the sidecars' libraries look at it. Otherwise it is what it is, always.
	library bool
	always  bool
	// note says what became of one that cannot be changed.
	note string
}

// gates are the sidecars' by name. What is not among them is refused by its name.
var gates = map[string]gate{
	"AnnotateFsResize":               {library: true},
	"MutableCSINodeAllocatableCount": {library: true, always: true},
	"RecoverVolumeExpansionFailure":  {library: true, always: true},
	gateAttributes:                   {library: true, always: true},
	gateGroups:                       {library: true, always: true},
	"CrossNamespaceVolumeDataSource": {note: "a claim's source must be in its own namespace here"},
	"HonorPVReclaimPolicy":           {always: true, note: "it is part of Kubernetes since 1.33"},
	"PreventVolumeModeConversion":    {always: true, note: "it is part of Kubernetes since 1.30"},
	"ReleaseLeaderElectionOnExit":    {always: true, note: "the lease is always released when the work has stopped"},
	"Topology":                       {always: true, note: "a driver says itself whether it has a topology"},
}

const (
	gateAttributes = "VolumeAttributesClass"
	gateGroups     = "CSIVolumeGroupSnapshot"
)

// Gates are the names of the feature gates, for help and completion.
func Gates() []string { return slices.Sorted(maps.Keys(gates)) }

// ParseGates reads --feature-gates, NAME=true|false each. An error names the gate.
func ParseGates(asked []string) (map[string]bool, error) {
	out := map[string]bool{}
	for _, a := range asked {
		name, value, ok := strings.Cut(strings.TrimSpace(a), "=")
		g, known := gates[name]
		if !known {
			return nil, fmt.Errorf("--feature-gates: no gate is called %q: there are %s", name, strings.Join(Gates(), ", "))
		}
		on, err := strconv.ParseBool(value)
		if !ok || err != nil {
			return nil, fmt.Errorf("--feature-gates: %s=%s: want true or false", name, value)
		}
		if !g.library && on != g.always {
			return nil, fmt.Errorf("--feature-gates: %s is always %t: %s", name, g.always, g.note)
		}
		out[name] = on
	}
	return out, nil
}

// applyGates tells the libraries, whose gates are of the whole process.
func applyGates(asked map[string]bool) error {
	for name, g := range gates {
		on, set := asked[name]
		if !g.library || !set {
			continue
		}
		if err := utilfeature.DefaultMutableFeatureGate.Set(fmt.Sprintf("%s=%t", name, on)); err != nil {
			return fmt.Errorf("--feature-gates: %w", err)
		}
	}
	return nil
}
