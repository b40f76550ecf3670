package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/node/holderexec"
	"berth.io/berth/internal/standalone"
	"berth.io/berth/internal/why"
)

func newExec(g *global) *cobra.Command {
	var namespace, container string
	c := &cobra.Command{
		Use:   "exec POD [-c CONTAINER] -- COMMAND [ARG ...]",
		Short: "Run a command with a pod's volumes at their mountPaths",
		Long: `Run a command with a pod's volumes at their mountPaths, in a mount namespace of its own: the host's files, the pod's
volumes over them, nothing of it visible outside. The pod's own command is never run: a pod here only holds its volumes.

The command runs as the container's user (root, where the pod names none) with the container's environment. A bare COMMAND is
looked for in that environment's PATH, which the pod's author chose, among the host's files and the pod's volumes: give a whole path
(/usr/bin/df) when running commands with the pods of people whom you do not trust. All that COMMAND starts ends with it, and with
berth exec, however that ends.`,
		Example: `  berth exec quickstart -- sh
  berth exec quickstart -- df -h /data
  berth exec -n shop db-0 -c app -- tar c /var/lib/db > backup.tar`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return &exitError{exitUsage, errors.New("name a pod and a command, for instance `berth exec quickstart -- sh`")}
			}
			return nil
		},
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
			name := podName(args[0])
			pod, err := client.CoreV1().Pods(namespace).Get(c.Context(), name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				return &why.ErrUnknown{Target: why.Target{Kind: why.Pod, Namespace: namespace, Name: name}, Near: nearPods(c.Context(), client, namespace, name)}
			case err != nil:
				return g.reached(c.Context(), fmt.Errorf("pod %s: %w", name, err))
			}
			var paths map[string]string
			if err := g.ask(c.Context(), standalone.PathPodPaths(pod.UID), &paths); err != nil {
				return fmt.Errorf("where the volumes of pod %s are: %w", name, err)
			}
			spec, err := holderexec.SpecFor(pod, container, string(d), paths)
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
	g.namespaceFlag(c, &namespace, "the pod")
	c.Flags().StringVarP(&container, "container", "c", "", "container whose volumeMounts are used (default: the first)")
	// kubectl's -i and -t are habits of the hand: the command has this terminal or pipe in any case.
	c.Flags().BoolP("stdin", "i", true, "taken as kubectl does; standard input is always passed on")
	c.Flags().BoolP("tty", "t", false, "taken as kubectl does; a terminal is always passed on")
	_ = c.Flags().MarkHidden("stdin")
	_ = c.Flags().MarkHidden("tty")
	c.ValidArgsFunction = g.completePods(&namespace)
	_ = c.RegisterFlagCompletionFunc("container", g.completeContainers(&namespace))
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Errorf("%w; put -- before the command: `berth exec POD -- COMMAND`", err)}
	})
	// What follows the pod's name is the command's, flags included.
	c.Flags().SetInterspersed(true)
	return c
}

// nearPods are the pods that may have been meant.
func nearPods(ctx context.Context, client kubernetes.Interface, namespace, name string) []string {
	return slices.DeleteFunc(why.Near(ctx, client, why.Target{Kind: why.Pod, Namespace: namespace, Name: name}), func(arg string) bool {
		return !strings.Contains(arg, "pod/")
	})
}

// podName takes kubectl's pod/NAME for NAME.
func podName(arg string) string {
	for _, kind := range []string{"pod/", "pods/", "po/"} {
		if name, ok := strings.CutPrefix(arg, kind); ok {
			return name
		}
	}
	return arg
}
