package cluster

import (
	"fmt"
	"slices"
	"strings"

	"berth.io/berth/internal/provision"
)

// Roles of the controller beside provision's.
const (
	// RoleBlock serves the controller's half of block.csi.berth.io.
	RoleBlock = "block"
	// RoleRetention runs SnapshotSchedules.
	RoleRetention = "retention"
	// RoleDiscovery tells of, and cleans up after, local volumes whose node is gone.
	RoleDiscovery = "discovery"
)

// Roles are the names that --controllers knows.
var Roles = func() (all []string) {
	for _, r := range provision.Roles {
		all = append(all, string(r))
	}
	return append(all, RoleRetention, RoleDiscovery, RoleBlock)
}()

// ChooseRoles reads --controllers as kube-controller-manager does: names, "*" for all, "-NAME" for all that is named or "*" but NAME. The
// last word on a name counts. Names alone choose those only; nothing, and exclusions alone, mean "*".
func ChooseRoles(asked []string) (map[string]bool, error) {
	chosen := map[string]bool{}
	all := true
	for _, a := range asked {
		if !strings.HasPrefix(a, "-") && a != "*" {
			all = false
		}
	}
	if all || slices.Contains(asked, "*") {
		for _, r := range Roles {
			chosen[r] = true
		}
	}
	for _, a := range asked {
		name, without := strings.CutPrefix(a, "-")
		if a == "*" {
			continue
		}
		if !slices.Contains(Roles, name) {
			return nil, fmt.Errorf("--controllers: no controller is called %q: there are %s, * for all, and -NAME for all but one", name, strings.Join(Roles, ", "))
		}
		chosen[name] = !without
	}
	for name, on := range chosen {
		if !on {
			delete(chosen, name)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("--controllers %s leaves nothing to do", strings.Join(asked, ","))
	}
	return chosen, nil
}

// without are provision's roles that were not chosen.
func without(chosen map[string]bool) (out []provision.Role) {
	for _, r := range provision.Roles {
		if !chosen[string(r)] {
			out = append(out, r)
		}
	}
	return out
}
