package deploy

import (
	"maps"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"berth.io/berth/test/deploy/roles"
)

// TestRolesAreTheTable: what the chart grants is what roles.yaml has a reason for, no more and no less, and each role is bound to its
// account alone.
func TestRolesAreTheTable(t *testing.T) {
	table, err := roles.Read("roles.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, role := range table {
		key := role.Scope + " " + role.Name
		if seen[key] {
			t.Errorf("the table has %s twice", key)
		}
		seen[key] = true
		t.Run(role.Scope+"/"+role.Name, func(t *testing.T) {
			have := permissionsOf(t, render(t, role.Values))[key]
			if have == nil {
				t.Fatalf("the chart has no such role")
			}
			if want := []string{"berth-system/" + role.Account}; !slices.Equal(have.accounts, want) {
				t.Errorf("bound to %v, want %v", have.accounts, want)
			}
			if want := namespaceOf(role); have.namespace != want {
				t.Errorf("in namespace %q, want %q", have.namespace, want)
			}
			want := role.Grants()
			for g := range have.grants {
				if _, wanted := want[g]; !wanted {
					t.Errorf("the chart grants %q, for which the table has no reason", g)
				}
				if g.Verb == "*" || g.Resource == "*" || g.Group == "*" {
					t.Errorf("%q: least privilege has no *", g)
				}
			}
			for g, why := range want {
				if !have.grants[g] {
					t.Errorf("the chart does not grant %q (%s)", g, why)
				}
			}
		})
	}
	// With everything switched on there is no role that the table lacks.
	all := map[string]any{}
	for _, role := range table {
		all = merge(all, role.Values)
	}
	for key := range permissionsOf(t, render(t, all)) {
		if !seen[key] {
			t.Errorf("the table lacks %s", key)
		}
	}
}

// TestRolesFollowControllers: a controller that does not run has no permissions.
func TestRolesFollowControllers(t *testing.T) {
	for name, c := range map[string]struct {
		controllers []any
		want        []string
	}{
		"all but one":       {[]any{"*", "-snapshot-controller"}, []string{"attach", "block", "discovery", "modify", "provision", "resize", "retention", "snapshot"}},
		"an exclusion":      {[]any{"-retention"}, []string{"attach", "block", "discovery", "modify", "provision", "resize", "snapshot", "snapshot-controller"}},
		"names":             {[]any{"provision", "block"}, []string{"block", "provision"}},
		"the last word":     {[]any{"provision", "block", "-block"}, []string{"provision"}},
		"one without rules": {[]any{"capacity", "attach"}, []string{"attach"}},
	} {
		t.Run(name, func(t *testing.T) {
			found := permissionsOf(t, render(t, map[string]any{"controller": map[string]any{"controllers": c.controllers}}))
			var got []string
			for key := range found {
				const prefix = "cluster berth-controller-"
				if len(key) > len(prefix) && key[:len(prefix)] == prefix {
					got = append(got, key[len(prefix):])
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("roles %v, want %v", got, c.want)
			}
			capacity := found["namespace berth-controller"].grants[roles.Grant{Verb: "create", Group: "storage.k8s.io", Resource: "csistoragecapacities"}]
			if want := slices.Contains(c.controllers, any("capacity")) || c.controllers[0] == "*" || c.controllers[0] == "-retention"; capacity != want {
				t.Errorf("may make capacity objects: %t, want %t", capacity, want)
			}
		})
	}
}

// permissions are one role of the chart.
type permissions struct {
	namespace string
	grants    map[roles.Grant]bool
	accounts  []string // NAMESPACE/NAME that it is bound to
}

func namespaceOf(r roles.Role) string {
	switch {
	case r.Scope == roles.Cluster:
		return ""
	case r.Namespace != "":
		return r.Namespace
	}
	return "berth-system"
}

// permissionsOf finds the roles and their bindings, by scope and name.
func permissionsOf(t *testing.T, objects []*unstructured.Unstructured) map[string]*permissions {
	t.Helper()
	out := map[string]*permissions{}
	at := func(key string) *permissions {
		if out[key] == nil {
			out[key] = &permissions{grants: map[roles.Grant]bool{}}
		}
		return out[key]
	}
	scope := map[string]string{"ClusterRole": roles.Cluster, "Role": roles.Namespaced, "ClusterRoleBinding": roles.Cluster, "RoleBinding": roles.Namespaced}
	for _, u := range objects {
		switch u.GetKind() {
		case "ClusterRole", "Role":
			var r rbacv1.ClusterRole
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, &r, u.GetKind() == "ClusterRole"); err != nil {
				t.Fatal(err)
			}
			p := at(scope[u.GetKind()] + " " + u.GetName())
			p.namespace = u.GetNamespace()
			maps.Copy(p.grants, roles.OfRules(r.Rules))
		case "ClusterRoleBinding", "RoleBinding":
			var b rbacv1.RoleBinding
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &b); err != nil {
				t.Fatal(err)
			}
			if scope[b.RoleRef.Kind] != scope[u.GetKind()] {
				t.Errorf("%s %s binds a %s", u.GetKind(), u.GetName(), b.RoleRef.Kind)
			}
			p := at(scope[b.RoleRef.Kind] + " " + b.RoleRef.Name)
			for _, s := range b.Subjects {
				p.accounts = append(p.accounts, s.Namespace+"/"+s.Name)
			}
		}
	}
	for key, p := range out {
		if len(p.grants) == 0 || len(p.accounts) == 0 {
			t.Errorf("%s: a role without a binding, or a binding without a role", key)
		}
	}
	return out
}
