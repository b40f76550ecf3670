package standalone

import (
	"strings"
	"testing"
)

func TestParseManifests(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		objects    int
		want       string
	}{
		{"nothing", "", 0, ""},
		{"comments and empty documents", "# a\n---\n---\n# b\n", 0, ""},
		{"two documents", "apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\napiVersion: v1\nkind: B\nmetadata: {name: b}\n", 2, ""},
		{"JSON", `{"apiVersion":"v1","kind":"A","metadata":{"name":"a"}}`, 1, ""},
		{"no YAML", "a: b: c", 0, "document 1"},
		{"a list at the top", "- a\n- b", 0, "document 1"},
		{"no kind", "apiVersion: v1\nmetadata: {name: a}", 0, "required"},
		{"no name", "apiVersion: v1\nkind: A", 0, "required"},
		{"the second is wrong", "apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\nkind: B", 0, "document 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseManifests("f.yaml", []byte(c.yaml))
			if c.want == "" && (err != nil || len(got) != c.objects) {
				t.Errorf("%d objects, %v; want %d", len(got), err, c.objects)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func FuzzParseManifests(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n{}"))
	f.Add([]byte("- a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := parseManifests("f", data)
		for _, u := range objects {
			if err == nil && (u.GetKind() == "" || u.GetName() == "") {
				t.Errorf("an object without kind or name came through: %v", u)
			}
		}
	})
}
