package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.io/berth/internal/control"
	"berth.io/berth/internal/standalone"
)

// What a user reads when a command cannot do its work, and the exit code for scripts.
func TestErrorsSayWhatToDo(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	nobody := filepath.Join(dir, "none")
	starts := "start one with `berth up --data-dir " + nobody + "`"
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"status", "--data-dir", nobody}, starts, exitNotRunning},
		{[]string{"why", "pvc/a", "--data-dir", nobody}, starts, exitNotRunning},
		{[]string{"orphans", "--data-dir", nobody}, starts, exitNotRunning},
		{[]string{"kubectl", "--data-dir", nobody, "get", "pod"}, starts, exitNotRunning},
		{[]string{"status", "--data-dir", file}, "is not a directory", 1},
		{[]string{"up", "--data-dir", file}, "is not a directory", 1},
		{[]string{"down", "--data-dir", file}, "is not a directory", 1},
		{[]string{"down", "--data-dir", ""}, "--data-dir is empty", exitUsage},
		{[]string{"status", "x"}, "takes no arguments", exitUsage},
		{[]string{"stat"}, "did you mean status?", exitUsage},
		{[]string{"frobnicate"}, "berth --help", exitUsage},
		{[]string{"exec", "app", "ls", "-l"}, "put -- before the command", exitUsage},
		{[]string{"up", "--listen", "foo"}, "--listen", exitUsage},
		{[]string{"up", "--pool-size", "banana"}, "--pool-size", exitUsage},
		{[]string{"up", "--controllers", "x"}, "want berth or upstream", exitUsage},
		{[]string{"status", "-o", "xml"}, "json or yaml", exitUsage},
	} {
		stderr, err := os.CreateTemp(dir, "err")
		if err != nil {
			t.Fatal(err)
		}
		root := newRoot()
		root.SetArgs(c.args)
		got := code(root.ExecuteContext(t.Context()), stderr)
		stderr.Close()
		text, _ := os.ReadFile(stderr.Name())
		if got != c.code || !strings.Contains(string(text), c.want) {
			t.Errorf("berth %s: %d %q, want %d and %q", strings.Join(c.args, " "), got, text, c.code, c.want)
		}
	}
}

func TestUnreachable(t *testing.T) {
	if err := unreachable("/srv/a", os.ErrPermission); !strings.Contains(err.Error(), "run this as root") {
		t.Error(err)
	}
	if err := unreachable(standalone.DefaultDataDir, control.ErrNotRunning); !strings.HasSuffix(err.Error(), "start one with `berth up`") {
		t.Error(err)
	}
	if unreachable("/srv/a", nil) != nil {
		t.Error("no error became one")
	}
}
