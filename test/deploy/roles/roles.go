// Package roles reads roles.yaml: what each role of the chart may do, and why.
package roles

import (
	"fmt"
	"os"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// Role is one ClusterRole or Role.
type Role struct {
	Name      string         `json:"role"`
	Account   string         `json:"account"`
	Scope     string         `json:"scope"`
	Namespace string         `json:"namespace,omitempty"` // of a Role; Berth's where empty
	Job       string         `json:"job"`
	Values    map[string]any `json:"values,omitempty"`
	Rules     []Rule         `json:"rules"`
}

// Rule is some verbs, and the reason for them.
type Rule struct {
	Group     string   `json:"group"`
	Resources []string `json:"resources"`
	Names     []string `json:"names,omitempty"`
	Verbs     []string `json:"verbs"`
	Why       string   `json:"why"`
}

// Scopes.
const (
	Cluster    = "cluster"
	Namespaced = "namespace"
)

// Read reads and checks the table.
func Read(file string) ([]Role, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []Role
	if err := yaml.UnmarshalStrict(text, &out); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, r := range out {
		if r.Name == "" || r.Account == "" || r.Job == "" || len(r.Rules) == 0 || r.Scope != Cluster && r.Scope != Namespaced {
			return nil, fmt.Errorf("%s: role %q needs account, job, rules and scope %s or %s", file, r.Name, Cluster, Namespaced)
		}
		for _, rule := range r.Rules {
			if rule.Why == "" || len(rule.Verbs) == 0 || len(rule.Resources) == 0 {
				return nil, fmt.Errorf("%s: role %s: a rule needs resources, verbs and why", file, r.Name)
			}
		}
	}
	return out, nil
}

// Grant is one permission: a verb on a resource, perhaps of one name.
type Grant struct{ Verb, Group, Resource, Name string }

func (g Grant) String() string {
	resource := g.Resource
	if g.Group != "" {
		resource += "." + g.Group
	}
	if g.Name != "" {
		resource += "/" + g.Name
	}
	return g.Verb + " " + resource
}

// Grants of the table's rules.
func (r Role) Grants() map[Grant]string {
	out := map[Grant]string{}
	for _, rule := range r.Rules {
		for g := range grants([]string{rule.Group}, rule.Resources, rule.Names, rule.Verbs) {
			out[g] = rule.Why
		}
	}
	return out
}

// OfRules are the grants of what the chart has.
func OfRules(rules []rbacv1.PolicyRule) map[Grant]bool {
	out := map[Grant]bool{}
	for _, r := range rules {
		for g := range grants(r.APIGroups, r.Resources, r.ResourceNames, r.Verbs) {
			out[g] = true
		}
		for _, url := range r.NonResourceURLs {
			out[Grant{Verb: strings.Join(r.Verbs, ","), Resource: url}] = true
		}
	}
	return out
}

func grants(groups, resources, names, verbs []string) map[Grant]bool {
	if len(names) == 0 {
		names = []string{""}
	}
	out := map[Grant]bool{}
	for _, group := range groups {
		for _, resource := range resources {
			for _, name := range names {
				for _, verb := range verbs {
					out[Grant{verb, group, resource, name}] = true
				}
			}
		}
	}
	return out
}

// Table is the roles for a reader, in Markdown.
func Table(all []Role) string {
	var b strings.Builder
	b.WriteString("| role | what | verbs | why |\n|---|---|---|---|\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| **%s** (%s, of %s) | | | %s |\n", r.Name, map[string]string{Cluster: "ClusterRole", Namespaced: "Role"}[r.Scope], r.Account, r.Job)
		for _, rule := range r.Rules {
			resources := slices.Clone(rule.Resources)
			for i := range resources {
				if rule.Group != "" {
					resources[i] += "." + rule.Group
				}
			}
			what := "`" + strings.Join(resources, "`, `") + "`"
			if len(rule.Names) > 0 {
				what += " named " + strings.Join(rule.Names, ", ")
			}
			fmt.Fprintf(&b, "| | %s | %s | %s |\n", what, strings.Join(rule.Verbs, " "), rule.Why)
		}
	}
	return b.String()
}
