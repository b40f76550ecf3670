package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth.io/berth/test/deploy/roles"
)

var table = []roles.Role{
	{Name: "berth-controller", Account: "berth-controller", Scope: roles.Cluster, Job: "j", Rules: []roles.Rule{
		{Resources: []string{"persistentvolumes"}, Verbs: []string{"list", "delete"}, Why: "volumes"}}},
	{Name: "berth-controller", Account: "berth-controller", Scope: roles.Namespaced, Job: "j", Rules: []roles.Rule{
		{Group: "coordination.k8s.io", Resources: []string{"leases"}, Names: []string{"berth-controller"}, Verbs: []string{"update"}, Why: "lease"}}},
}

const (
	list      = `{"stage":"ResponseComplete","verb":"list","user":{"username":"system:serviceaccount:berth-system:berth-controller"},"objectRef":{"resource":"persistentvolumes"},"responseStatus":{"code":200},"annotations":{"authorization.k8s.io/decision":"allow"}}`
	deletes   = `{"stage":"ResponseComplete","verb":"delete","user":{"username":"system:serviceaccount:berth-system:berth-controller"},"objectRef":{"resource":"persistentvolumes","name":"a"},"responseStatus":{"code":404},"annotations":{"authorization.k8s.io/decision":"allow"}}`
	lease     = `{"stage":"ResponseComplete","verb":"update","user":{"username":"system:serviceaccount:berth-system:berth-controller"},"objectRef":{"resource":"leases","apiGroup":"coordination.k8s.io","namespace":"berth-system","name":"berth-controller"},"responseStatus":{"code":200}}`
	elsewhere = `{"stage":"ResponseComplete","verb":"update","user":{"username":"system:serviceaccount:berth-system:berth-controller"},"objectRef":{"resource":"leases","apiGroup":"coordination.k8s.io","namespace":"kube-system","name":"berth-controller"},"responseStatus":{"code":200}}`
	refused   = `{"stage":"ResponseComplete","verb":"get","user":{"username":"system:serviceaccount:berth-system:berth-node"},"objectRef":{"resource":"secrets","namespace":"x","name":"s"},"responseStatus":{"code":403,"message":"no"},"annotations":{"authorization.k8s.io/decision":"forbid"}}`
	quota     = `{"stage":"ResponseComplete","verb":"delete","user":{"username":"system:serviceaccount:berth-system:berth-controller"},"objectRef":{"resource":"persistentvolumes","name":"b"},"responseStatus":{"code":403,"message":"admission"},"annotations":{"authorization.k8s.io/decision":"allow"}}`
	applied   = `{"stage":"ResponseComplete","verb":"patch","user":{"username":"system:serviceaccount:berth-system:berth-node"},"objectRef":{"resource":"nodes","name":"n"},"responseStatus":{"code":201}}`
	others    = `{"stage":"ResponseComplete","verb":"get","user":{"username":"system:serviceaccount:kube-system:x"},"objectRef":{"resource":"secrets"},"responseStatus":{"code":200}}`
	review    = `{"stage":"ResponseComplete","verb":"create","user":{"username":"system:serviceaccount:berth-system:berth-node"},"objectRef":{"resource":"selfsubjectaccessreviews","apiGroup":"authorization.k8s.io"},"responseStatus":{"code":201}}`
)

func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		log  []string
		says []string // the beginnings of the lines
	}{
		"all that is granted is used":                {[]string{list, deletes, lease, others, review}, nil},
		"an informer that begins with a watch":       {[]string{strings.Replace(list, `"verb":"list"`, `"verb":"watch"`, 1), deletes, lease}, []string{"not in the table: berth-controller did watch persistentvolumes"}},
		"a verb that nobody needs":                   {[]string{list, lease}, []string{"unused: berth-controller of berth-controller may delete persistentvolumes (volumes)"}},
		"a refusal":                                  {[]string{list, deletes, lease, refused}, []string{`refused: berth-node wanted get secrets/s in namespace "x": no`}},
		"a refusal of admission is no missing right": {[]string{list, quota, lease}, nil},
		"an apply that makes the object":             {[]string{list, deletes, lease, applied}, []string{"not in the table: berth-node did create nodes/n", "not in the table: berth-node did patch nodes/n"}},
		"a right from elsewhere":                     {[]string{list, deletes, lease, elsewhere}, []string{"not in the table: berth-controller did update leases.coordination.k8s.io/berth-controller"}},
		"a last line that is cut short":              {[]string{list, deletes, lease, lease[:20]}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSeen("berth-system")
			text := strings.Join(c.log, "\n")
			if !strings.HasSuffix(text, lease[:20]) {
				text += "\n"
			}
			if err := s.read(strings.NewReader(text)); err != nil {
				t.Fatal(err)
			}
			got := s.compare(table, "berth-system")
			if !slices.EqualFunc(got, c.says, func(line, begin string) bool { return strings.HasPrefix(line, begin) }) {
				t.Errorf("says %q, want %q", got, c.says)
			}
		})
	}
}

// TestRun: a log without anything of ours is no proof, and one that is no log is an error.
func TestRun(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"nothing of ours": {others + "\n", "no request"},
		"no log":          {"hello\n", "line 1"},
		"differences":     {list + "\n", "2 differences"},
		"as it should be": {strings.Join([]string{list, deletes, lease, ""}, "\n"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := run(&out, table, "berth-system", []string{file})
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
		})
	}
}
