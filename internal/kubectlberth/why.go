package kubectlberth

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"berth.io/berth/internal/why"
)

type whyOptions struct {
	connection *connection
	selector   string
	all        bool
	follow     bool
	output     output
	many       bool // a table was asked for
}

func newWhy(c *connection) *cobra.Command {
	o := &whyOptions{connection: c}
	cmd := &cobra.Command{
		Use:   "why (pvc/NAME | pod/NAME | pv/NAME | volumesnapshot/NAME | volumegroupsnapshot/NAME | snapshotschedule/NAME)... | -l SELECTOR [-A]",
		Short: "Tell what a volume waits for, who holds it, since when, and what to do",
		Long: `Tell the way of a volume from the claim to the running pod: what has happened and when, what it waits for now, who holds it, since
when, the last error in plain words, and what to do. A name alone is a claim's. Snapshots, groups of them and Berth's schedules of snapshots
are told of in the same way.

With -l, or -A, a table of pods: pod, claim, volume, attachment, node, and the pool or disk that has the data.

It works with any CSI driver and without Berth: from the API objects, their times, conditions and managed fields, and events, which the
API keeps for an hour. It only reads. What you may not read is left out, and said.`,
		Example: `  kubectl berth why pvc/data
  kubectl berth why data                      # the same
  kubectl berth why -n shop pod/db-0
  kubectl berth why pv/pvc-1c0f9a6e -o json
  kubectl berth why pod/db-0 --watch          # until it runs
  kubectl berth why vgs/before-upgrade        # a group snapshot
  kubectl berth why -l app=db -o wide
  kubectl berth why -A`,
		ValidArgsFunction: c.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.many = o.all || cmd.Flags().Changed("selector")
			return o.run(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.selector, "selector", "l", "", "label selector of the pods, and of claims that none of them uses")
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "the pods of all namespaces")
	f.BoolVarP(&o.follow, "watch", "w", false, "tell it again whenever it changes, until nothing is waited for")
	f.VarP(&o.output, "output", "o", "output format: json, yaml or wide (default: text for a person)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json", "yaml", "wide"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (o *whyOptions) run(cmd *cobra.Command, args []string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	namespace, err := o.connection.namespace()
	if err != nil {
		return err
	}
	targets, err := parseTargets(namespace, args)
	if err == nil {
		err = o.check(targets)
	}
	if err != nil {
		return usageError{err}
	}
	s, err := o.connection.sources(ctx, o.many || len(targets) > 1)
	if err != nil {
		return err
	}
	switch {
	case o.many:
		if o.all {
			namespace = metav1.NamespaceAll
		}
		all, err := why.ExplainAll(ctx, s, namespace, o.selector)
		if err != nil {
			return err
		}
		if len(all.Links) == 0 && o.output != asJSON && o.output != asYAML {
			_, err := fmt.Fprintln(cmd.ErrOrStderr(), "No pods or claims found.")
			return err
		}
		return o.output.write(out, all, func(w io.Writer) error { return all.WriteTable(w, o.all, o.output == asWide) })
	case o.follow:
		return follow(ctx, s, targets[0], func(j *why.Journey) error { return o.write(out, j) })
	}
	return o.tell(cmd, s, targets)
}

// check finds flags that contradict each other.
func (o *whyOptions) check(targets []why.Target) error {
	switch {
	case o.many && len(targets) > 0:
		return errors.New("name objects, or say -l or -A, not both")
	case o.many && o.follow:
		return errors.New("--watch follows one object: name it")
	case o.follow && len(targets) > 1:
		return errors.New("--watch follows one object, not several")
	case !o.many && len(targets) == 0:
		return errors.New("name an object (" + why.Say + "), or say -l SELECTOR")
	}
	if _, err := labels.Parse(o.selector); err != nil {
		return fmt.Errorf("-l: %w", err)
	}
	return nil
}

// parseTargets reads "pvc/a pod/b", and kubectl's "pvc a b".
func parseTargets(namespace string, args []string) ([]why.Target, error) {
	if len(args) > 1 && !strings.Contains(args[0], "/") {
		if _, err := why.ParseTarget(namespace, args[0]+"/x"); err == nil {
			kind := args[0]
			args = append([]string{}, args[1:]...)
			for i, name := range args {
				if strings.Contains(name, "/") {
					return nil, fmt.Errorf("%q: there is a kind before it already (%s)", name, kind)
				}
				args[i] = kind + "/" + name
			}
		}
	}
	targets := make([]why.Target, len(args))
	for i, arg := range args {
		var err error
		if targets[i], err = why.ParseTarget(namespace, arg); err != nil {
			return nil, err
		}
	}
	return targets, nil
}

// tell answers for each target; one that is not there does not keep the others from being told.
func (o *whyOptions) tell(cmd *cobra.Command, s why.Sources, targets []why.Target) error {
	var journeys []*why.Journey
	var failed []error
	for i, t := range targets {
		j, err := why.Explain(cmd.Context(), s, t)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		journeys = append(journeys, j)
		if o.output == asJSON || o.output == asYAML {
			continue
		}
		if i > 0 {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "----"); err != nil {
				return err
			}
		}
		if err := o.write(cmd.OutOrStdout(), j); err != nil {
			return err
		}
	}
	if o.output == asJSON || o.output == asYAML {
		var answer any = map[string]any{"items": journeys}
		if len(targets) == 1 && len(journeys) == 1 {
			answer = journeys[0]
		}
		if len(journeys) > 0 {
			if err := o.output.write(cmd.OutOrStdout(), answer, nil); err != nil {
				return err
			}
		}
	}
	return errors.Join(failed...)
}

func (o *whyOptions) write(out io.Writer, j *why.Journey) error {
	return o.output.write(out, j, func(w io.Writer) error { return j.WriteText(w, why.TextOptions{Color: isTerminal(w)}) })
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
