package cli

import (
	"errors"
	"io"
	"strings"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/control"
	"berth.io/berth/internal/standalone"
	"berth.io/berth/internal/trace"
	"berth.io/berth/internal/why"
)

func newWhy(g *global) *cobra.Command {
	var namespace string
	var out *format
	c := &cobra.Command{
		Use:   "why pvc/NAME | pod/NAME | pv/NAME | volumesnapshot/NAME | volumegroupsnapshot/NAME | snapshotschedule/NAME",
		Short: "Tell the journey of a volume: what happened, what it waits for, and what to do",
		Long: `Tell the journey of a volume as a timeline: claimed, matched or provisioned, scheduled, attached, staged, published, with
durations; what it waits for now, since when and who holds it; the last error in plain words, and what to do.

Of a snapshot (vs/NAME, as kubectl has it), or a group of them (vgs/NAME): what it is of, when it was taken, what it waits for. Of a
schedule (snapsched/NAME): its times, what it has taken, and what keeps it from taking more.

A name alone is a claim's. What is gone is told from the journal, as far as it goes back.`,
		Example: `  berth why pvc/quickstart
  berth why quickstart                       # the same
  berth why -n shop pod/db-0
  berth why pv/pvc-1c0f9a6e -o json
  berth why volumesnapshot/before-upgrade
  berth why snapshotschedule/nightly`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return &exitError{exitUsage, errors.New("name one object: " + why.Say)}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			target, err := why.ParseTarget(namespace, strings.Join(args, "/")) // also kubectl's `pvc NAME`
			if err != nil {
				return &exitError{exitUsage, err}
			}
			d, err := g.dir()
			if err != nil {
				return err
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			snapshots, schedules, err := g.snapshots()
			if err != nil {
				return err
			}
			s := why.Sources{Client: client, Snapshots: snapshots, Schedules: schedules, Read: func(f trace.Filter) ([]trace.Entry, error) { return trace.Read(d.Journal(), f) }}
			// Another instance's API can be asked without its control socket; then the operations under way are not known.
			asked := g.ask(c.Context(), standalone.PathHolders, &s.Holders)
			if asked != nil && !errors.Is(asked, control.ErrNotRunning) {
				return asked
			}
			if asked == nil {
				asked = g.ask(c.Context(), standalone.PathUnwell, &s.Unwell)
			}
			j, err := why.Explain(c.Context(), s, target)
			if err != nil && asked != nil {
				return asked
			}
			if err != nil {
				return err
			}
			return out.write(c.OutOrStdout(), j, func(w io.Writer) error { return j.WriteText(w, why.TextOptions{Color: isTerminal(w)}) })
		},
	}
	g.namespaceFlag(c, &namespace, "the claim, pod, snapshot or schedule")
	out = outputFlag(c)
	c.ValidArgsFunction = g.completeTargets(&namespace)
	return c
}

// snapshots asks the instance's API about snapshots and their schedules.
func (g *global) snapshots() (snapclient.Interface, func(namespace string) why.ScheduleReader, error) {
	d, err := g.dir()
	if err != nil {
		return nil, nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", d.Kubeconfig())
	if err != nil {
		return nil, nil, err
	}
	ours, err := objects.NewClient(cfg)
	if err != nil {
		return nil, nil, err
	}
	snapshots, err := snapclient.NewForConfig(cfg)
	return snapshots, func(namespace string) why.ScheduleReader { return ours.Schedules(namespace) }, err
}
