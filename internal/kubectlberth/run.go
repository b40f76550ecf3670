// Package kubectlberth is kubectl's plugin: `kubectl berth why pvc/NAME` tells why a volume is where it is, in any cluster and with any
// driver, from what the API has.
//
// It only reads. What flows in: a command line as kubectl hands it on, and kubectl's configuration. What flows out: text, or the structs of
// package why as JSON or YAML, which does the telling.
package kubectlberth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // what a kubeconfig may name: oidc
)

// completer is the name under which kubectl asks a plugin to complete (kubectl's pkg/cmd/plugin_completion.go).
const completer = "kubectl_complete-berth"

// usageError is a command line that cannot be meant; it ends with 2, as `berth` does.
type usageError struct{ error }

// Run does what argv says, until ctx ends, and returns the exit code: 0; 1 when the question could not be answered; 2 for a command line
// that cannot be meant; 130 when ctx ended. Called as kubectl_complete-berth it completes kubectl's command line.
func Run(ctx context.Context, version string, argv []string, out, errOut io.Writer) int {
	args := argv[1:]
	if filepath.Base(argv[0]) == completer {
		args = append([]string{cobra.ShellCompRequestCmd}, args...)
	}
	root := newRoot(version)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil: // Ctrl-C
		return 130
	case errors.As(err, &usage):
		fmt.Fprintf(errOut, "error: %v\nSee kubectl berth why --help.\n", err)
		return 2
	}
	fmt.Fprintf(errOut, "error: %v\n", err)
	return 1
}

func newRoot(version string) *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-berth",
		Short: "Tell why a volume is where it is, in any cluster",
		Long: `Tell why a volume is where it is, in any cluster and with any CSI driver; Berth need not be in it.

It reads what the API has (objects, their times, conditions and managed fields, events) and changes nothing.`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl berth"},
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c := newConnection(version)
	c.addFlags(root)
	_ = root.RegisterFlagCompletionFunc("namespace", c.completeNamespaces)
	_ = root.RegisterFlagCompletionFunc("context", c.completeContexts)
	root.AddCommand(newWhy(c), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	})
	return root
}
