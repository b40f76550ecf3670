package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/control"
)

// Every command says what it does and shows how: `--help` with examples.
func TestEveryCommandHasHelpWithExamples(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() != "help" && c.Name() != "completion" && c.Parent() != nil && c.Parent().Name() != "completion" {
			if c.Short == "" || c.Example == "" {
				t.Errorf("%s has no description or no example", c.CommandPath())
			}
			if !strings.Contains(c.Example, "berth") {
				t.Errorf("%s: the example does not call berth", c.CommandPath())
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}

func TestExitCodes(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"success", nil, 0},
		{"a failure", errors.New("x"), 1},
		{"nothing runs", fmt.Errorf("status: %w", control.ErrNotRunning), 3},
		{"a command's own", &exitError{code: 7}, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := code(c.err, null); got != c.want {
				t.Errorf("code %d, want %d", got, c.want)
			}
		})
	}
	for _, args := range [][]string{{"up", "--nope"}, {"status", "extra"}, {"why"}, {"why", "node/x"}, {"exec", "pod"}, {"up", "--log-level", "loud"}} {
		root := newRoot()
		root.SetArgs(args)
		root.SetOut(null)
		if got := code(root.Execute(), null); got != exitUsage {
			t.Errorf("berth %s: code %d, want %d", strings.Join(args, " "), got, exitUsage)
		}
	}
}

func TestKubectlTakesTheDataDirectoryAnywhere(t *testing.T) {
	for _, c := range []struct {
		args, rest []string
		dir        string
	}{
		{[]string{"get", "pods"}, []string{"get", "pods"}, "default"},
		{[]string{"--data-dir", "/a", "get"}, []string{"get"}, "/a"},
		{[]string{"get", "--data-dir=/a", "-o", "yaml"}, []string{"get", "-o", "yaml"}, "/a"},
		{[]string{"exec", "p", "--", "x", "--data-dir=/a"}, []string{"exec", "p", "--", "x", "--data-dir=/a"}, "default"},
	} {
		g := &global{dataDir: "default"}
		if rest := takeDataDir(g, c.args); !slices.Equal(rest, c.rest) || g.dataDir != c.dir {
			t.Errorf("%q: %q with %q, want %q with %q", c.args, rest, g.dataDir, c.rest, c.dir)
		}
	}
}

func TestOutputFormats(t *testing.T) {
	var f format
	if f.Set("xml") == nil {
		t.Error("xml was accepted")
	}
	for in, want := range map[format]string{asJSON: "{\n  \"a\": 1\n}\n", asYAML: "a: 1\n"} {
		var b strings.Builder
		if err := in.write(&b, map[string]int{"a": 1}, nil); err != nil || b.String() != want {
			t.Errorf("%s: %q, %v", in, b.String(), err)
		}
	}
}
