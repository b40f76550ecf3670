package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/node/holderexec"
)

func newExec(g *global) *cobra.Command {
	var namespace, container string
	c := &cobra.Command{
		Use:   "exec POD [-c CONTAINER] -- COMMAND [ARG ...]",
		Short: "Run a command with a pod's volumes at their mountPaths",
		Long: `Run a command with a pod's volumes at their mountPaths, in a mount namespace of its own: the host's files, the pod's
volumes over them, nothing of it visible outside. The pod's own command is never run: a pod here only holds its volumes.`,
		Example: `  berth exec quickstart -- sh
  berth exec quickstart -- df -h /data
  berth exec -n shop db-0 -c app -- tar c /var/lib/db > backup.tar`,
		Args: usage(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			if os.Geteuid() != 0 {
				return errors.New("berth exec needs root: it makes a mount namespace")
			}
			d, err := g.dir()
			if err != nil {
				return err
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			pod, err := client.CoreV1().Pods(namespace).Get(c.Context(), args[0], metav1.GetOptions{})
			if err != nil {
				return fmt.Errorf("pod %s: %w", args[0], err)
			}
			spec, err := holderexec.SpecFor(pod, container, string(d))
			if err != nil {
				return err
			}
			for _, name := range spec.Unset {
				fmt.Fprintf(c.ErrOrStderr(), "berth: %s is not set: its value comes from what only a container runtime resolves\n", name)
			}
			code, err := holderexec.Run(c.Context(), *spec, args[1:], holderexec.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
			if code != 0 || err != nil {
				return &exitError{code: code, err: err}
			}
			return nil
		},
	}
	namespaceFlag(c, &namespace)
	c.Flags().StringVarP(&container, "container", "c", "", "container whose volumeMounts are used (default: the first)")
	c.ValidArgsFunction = g.completePods(&namespace)
	// What follows the pod's name is the command's, flags included.
	c.Flags().SetInterspersed(true)
	return c
}
