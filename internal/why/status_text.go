package why

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteText prints the status as aligned text.
func (s *Status) WriteText(out io.Writer, o TextOptions) error {
	if o.Location == nil {
		o.Location = time.Local
	}
	p := &printer{out: out, TextOptions: o, asked: s.Asked}
	t := table{printer: p}
	for _, c := range s.Components {
		t.row("component", c.Name, p.readiness(c.Ready), c.Detail)
	}
	for _, n := range s.Nodes {
		t.row("node", n.Name, p.readiness(n.Ready), fmt.Sprintf("%s, %s attached", count(n.Pods, "pod"), count(n.Attached, "volume")), n.Detail)
	}
	for _, x := range s.Pools {
		t.row("pool", x.Name, bytesOf(x.Size), fmt.Sprintf("%s used, %s available, %s", bytesOf(x.Used), bytesOf(x.Available), count(x.Volumes, "volume")), joined(x.Path, x.Detail))
	}
	for _, d := range s.Drivers {
		t.row("driver", d.Name, p.readiness(len(d.Nodes) > 0 && d.Problem == ""), driverLine(&d), d.Problem)
	}
	for _, d := range s.FlexVolumes {
		t.row("driver", d.Name, p.readiness(d.Loaded), d.line(), d.Problem)
	}
	t.flush()
	p.printf("\nvolumes  %s\nclaims   %s, %s in use\npods     %s\n", phases(s.Volumes), phases(s.Claims), bytesOf(s.Requested), phases(s.Pods))
	if len(s.Operations) > 0 {
		p.printf("\nUnder way:\n")
		t := table{printer: p}
		for _, h := range s.Operations {
			t.row("  "+h.Volume, span(ms(s.Asked.Sub(h.Since)), false), joined(h.Driver, h.Pod, strings.Join(strings.Fields(h.Step), " ")))
		}
		t.flush()
	}
	if len(s.Attention) > 0 {
		p.printf("\nDoes not get on (berth why tells the reason):\n")
		t := table{printer: p}
		for _, a := range s.Attention {
			command := "berth why "
			if a.Namespace != "" && a.Namespace != "default" {
				command += "-n " + a.Namespace + " "
			}
			t.row("  "+command+string(a.Kind)+"/"+a.Name, a.State, span(ms(s.Asked.Sub(a.Since)), false))
		}
		t.flush()
		if s.More > 0 {
			p.printf("  and %d more\n", s.More)
		}
	}
	for _, n := range s.Notes {
		p.printf("\nNote: %s\n", n)
	}
	return p.err
}

// table collects rows and prints them aligned, without blanks at the end of a line.
type table struct {
	*printer
	rows [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) flush() {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range t.rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush()
	for line := range strings.Lines(b.String()) {
		t.printf("%s\n", strings.TrimRight(line, " \n"))
	}
}

func (p *printer) readiness(ready bool) string {
	if ready {
		return p.paint(green, "ready")
	}
	return p.paint(red, "not ready")
}

func driverLine(d *DriverStatus) string {
	parts := []string{count(d.Volumes, "volume")}
	if d.Available >= 0 {
		parts = append(parts, bytesOf(d.Available)+" available")
	}
	if d.Limit != nil {
		parts = append(parts, fmt.Sprintf("at most %d on a node", *d.Limit))
	}
	if len(d.Nodes) > 0 {
		parts = append(parts, "on "+strings.Join(d.Nodes, ", "))
	} else {
		parts = append(parts, "registered on no node")
	}
	return strings.Join(parts, ", ")
}

func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func phases(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var parts []string
	for _, phase := range slices.Sorted(maps.Keys(m)) {
		what := phase
		if phase == WaitsForFirstPod {
			what = "waiting for a first pod"
		}
		parts = append(parts, fmt.Sprintf("%d %s", m[phase], what))
	}
	return strings.Join(parts, ", ")
}

// bytesOf prints bytes with one decimal in the largest binary unit.
func bytesOf(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1<<10 && i < len(units)-1 {
		v /= 1 << 10
		i++
	}
	return strings.Replace(fmt.Sprintf("%.1f %ciB", v, units[i]), ".0 ", " ", 1)
}
