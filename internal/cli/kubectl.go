package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

func newKubectl(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl ...",
		Short: "kubectl, built in and pointed at the instance",
		Long: `kubectl, built in and pointed at the instance of --data-dir. Every kubectl command and flag works; --data-dir
(or the environment's ` + EnvDataDir + `) goes to berth, all else to kubectl. Any other kubectl works as well, with --kubeconfig DIR/kubeconfig.`,
		Example: `  berth kubectl get pv,pvc,sc,volumeattachment
  berth kubectl apply -f examples/quickstart.yaml
  berth --data-dir /srv/berth kubectl describe pvc data`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runKubectl(g, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			// The embedded command completes itself and ends the process.
			_ = runKubectl(g, append(append([]string{cobra.ShellCompRequestCmd}, args...), toComplete))
			os.Exit(0)
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
}

// runKubectl runs the embedded kubectl as if it had been called by itself.
func runKubectl(g *global, args []string) error {
	args = takeDataDir(g, args)
	d, err := g.dir()
	if err != nil {
		return err
	}
	if !hasFlag(args, "--kubeconfig") && asksTheAPI(args) {
		if err := readable(d); err != nil {
			return err
		}
		if err := os.Setenv("KUBECONFIG", d.Kubeconfig()); err != nil {
			return err
		}
	}
	os.Args = append([]string{"kubectl"}, args...)
	k := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
		PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     os.Args,
		IOStreams:     genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	k.SetArgs(args)
	cmdutil.BehaviorOnFatal(func(msg string, code int) {
		if msg != "" {
			fmt.Fprintln(os.Stderr, strings.TrimRight(msg, "\n"))
		}
		if strings.Contains(msg, "was refused") {
			if err := g.reached(context.Background(), nil); err != nil {
				fmt.Fprintln(os.Stderr, "berth:", err)
			}
		}
		os.Exit(code)
	})
	if err := k.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return &exitError{code: 1}
	}
	return nil
}

// takeDataDir honours --data-dir also behind "kubectl", where cobra does not parse flags.
func takeDataDir(g *global, args []string) []string {
	for i, a := range args {
		if a == "--" {
			break
		}
		if v, ok := strings.CutPrefix(a, "--data-dir="); ok {
			g.dataDir = v
			return append(append([]string{}, args[:i]...), args[i+1:]...)
		}
		if a == "--data-dir" && i+1 < len(args) {
			g.dataDir = args[i+1]
			return append(append([]string{}, args[:i]...), args[i+2:]...)
		}
	}
	return args
}

// asksTheAPI leaves out what works without an instance: help and completion.
func asksTheAPI(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "help", "completion", "options":
		return false
	}
	for _, a := range args {
		if a == "--help" || a == "-h" {
			return false
		}
		if a == "--" {
			break
		}
	}
	return true
}

func hasFlag(args []string, name string) bool {
	for _, a := range args {
		if a == name || strings.HasPrefix(a, name+"=") {
			return true
		}
	}
	return false
}
