// Package cli is berth's command line: one file per subcommand, each a thin skin over the room that does the work.
//
// Exit codes: 0 done, 1 it failed, 2 the command line is wrong, 3 nothing is running; `berth exec` and `berth kubectl`
// pass on those of what they run.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/control"
	"berth.io/berth/internal/standalone"
)

// Version is set when the program is linked.
var Version = "dev"

// EnvDataDir names the data directory when --data-dir does not.
const EnvDataDir = "BERTH_DATA_DIR"

// Exit codes that are not 0 or 1.
const (
	exitUsage      = 2
	exitNotRunning = 3
)

// exitError carries an exit code; its text, if any, is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Main runs berth and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return code(newRoot().ExecuteContext(ctx), os.Stderr)
}

func code(err error, stderr *os.File) int {
	if err == nil {
		return 0
	}
	text := err.Error()
	unknown := strings.HasPrefix(text, "unknown command ") // cobra has no type for it
	if unknown {
		what, near, _ := strings.Cut(text, "\n\nDid you mean this?\n")
		if text = what; near != "" {
			text += "; did you mean " + strings.Join(strings.Fields(near), " or ") + "?"
		} else if !strings.Contains(text, "--help") {
			text += "; see `berth --help`"
		}
	}
	if text != "" {
		fmt.Fprintln(stderr, "berth:", text)
	}
	var e *exitError
	switch {
	case unknown:
		return exitUsage
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, control.ErrNotRunning):
		return exitNotRunning
	}
	return 1
}

// global are the flags of every command.
type global struct{ dataDir string }

func newRoot() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:   "berth",
		Short: "Persistent volumes: from a claim to a mounted directory, and back",
		Long: `Berth gives workloads persistent volumes: from a claim to a mounted directory, and back.

` + "`berth up`" + ` turns this machine into a one-node Kubernetes for storage: a real API, real claims, real mounts.
` + "`berth why`" + ` tells where a volume is on its way, and what it waits for.`,
		Example: `  berth up                                   # start here; stop with Ctrl-C, volumes stay mounted
  berth kubectl apply -f examples/quickstart.yaml
  berth why pvc/quickstart
  berth down                                 # unmount, detach, stop`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       Version,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	dir := os.Getenv(EnvDataDir)
	if dir == "" {
		dir = string(standalone.DefaultDataDir)
	}
	root.PersistentFlags().StringVar(&g.dataDir, "data-dir", dir, "directory of the instance (environment: "+EnvDataDir+")")
	_ = root.MarkPersistentFlagDirname("data-dir")
	root.AddCommand(newUp(g), newDown(g), newController(), newNode(g), newStatus(g), newWhy(g), newKubectl(g), newExec(g), newOrphans(g), newVolume(g), newTry(), newMigrate(g), newFlexvolume(), newCleanDevice(), newVersion())
	return root
}

// dir resolves --data-dir.
func (g *global) dir() (standalone.DataDir, error) {
	if g.dataDir == "" { // an unset variable in a script; it would be the current directory
		return "", &exitError{exitUsage, errors.New("--data-dir is empty; name the directory of the instance")}
	}
	d, err := standalone.Resolve(g.dataDir)
	if err != nil {
		return "", err
	}
	if fi, err := os.Stat(string(d)); err == nil && !fi.IsDir() {
		return "", fmt.Errorf("--data-dir %s is not a directory", d)
	}
	return d, nil
}

// ask puts a question to the running instance.
func (g *global) ask(ctx context.Context, path string, answer any) error {
	d, err := g.dir()
	if err != nil {
		return err
	}
	return unreachable(d, control.NewClient(d.Control()).Get(ctx, path, answer))
}

// unreachable says what to do when an instance cannot be asked because it does not run or is another user's.
func unreachable(d standalone.DataDir, err error) error {
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return fmt.Errorf("%s: %w; start one with `berth up%s`", d, control.ErrNotRunning, dataDirArg(d))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the instance in %s is another user's (%w); run this as root, for instance with sudo", d, fs.ErrPermission)
	}
	return err
}

// readable says what to do when the instance's kubeconfig is not there or another user's.
func readable(d standalone.DataDir) error {
	f, err := os.Open(d.Kubeconfig())
	if err == nil {
		return f.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = control.ErrNotRunning
	}
	return unreachable(d, err)
}

// dataDirArg names the directory on a command line, where it is not the default one.
func dataDirArg(d standalone.DataDir) string {
	if d == standalone.DefaultDataDir {
		return ""
	}
	return " --data-dir " + string(d)
}

// client speaks to the instance's API.
func (g *global) client() (kubernetes.Interface, error) {
	d, err := g.dir()
	if err != nil {
		return nil, err
	}
	if err := readable(d); err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", d.Kubeconfig())
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

// reached says that nothing runs when that is why the API could not be asked.
func (g *global) reached(ctx context.Context, err error) error {
	if asked := g.ask(ctx, standalone.PathHolders, &json.RawMessage{}); errors.Is(asked, control.ErrNotRunning) {
		return asked
	}
	return err
}

// noArgs is for commands that take flags alone.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &exitError{exitUsage, fmt.Errorf("%s takes no arguments, and was given %q; see `%[1]s --help`", c.CommandPath(), strings.Join(args, " "))}
	}
	return nil
}
