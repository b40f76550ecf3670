package why

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable prints one line for each volume; namespaces with a column of their own, wide with class, driver, size and attachment.
func (all *Chains) WriteTable(out io.Writer, namespaces, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	row := func(namespace string, cells, more []string, state string) {
		if namespaces {
			cells = append([]string{namespace}, cells...)
		}
		if wide {
			cells = append(cells, more...)
		}
		for i := range cells {
			cells[i] = cmp.Or(cells[i], "-")
		}
		fmt.Fprintln(w, strings.Join(append(cells, state), "\t"))
	}
	row("NAMESPACE", []string{"POD", "CLAIM", "VOLUME", "ATTACHED", "NODE", "DISK"}, []string{"CLASS", "DRIVER", "SIZE", "VOLUMEATTACHMENT"}, "STATE")
	for i := range all.Links {
		l := &all.Links[i]
		row(l.Namespace, []string{l.Pod, l.Claim, l.PV, l.Attached, l.Node, l.Disk}, []string{l.Class, l.Driver, l.Size, l.Object}, l.state(all))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range all.Notes {
		if _, err := fmt.Fprintf(out, "Note: %s\n", n); err != nil {
			return err
		}
	}
	return nil
}

// state is the last column: what is wrong, or what is waited for, or that all is well.
func (l *Link) state(all *Chains) string {
	since := ""
	if l.Waiting != nil && !l.Waiting.Since.IsZero() {
		since = fmt.Sprintf(" (for %s)", span(ms(all.Asked.Sub(l.Waiting.Since)), false))
	}
	switch {
	case l.Problem != nil:
		return strings.Join(strings.Fields(l.Problem.What), " ") + since
	case l.Waiting != nil:
		return "waits for " + strings.Join(strings.Fields(l.Waiting.For), " ") + since
	case l.PodReady:
		return "Ready"
	}
	return cmp.Or(l.PodPhase, l.Phase, "ok")
}
