package why

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"berth.io/berth/internal/trace"
)

// TextOptions are how a person reads it.
type TextOptions struct {
	// Color adds ANSI colours; for terminals only.
	Color bool
	// Location of the times; nil is the local one.
	Location *time.Location
}

// WriteText prints the journey as aligned text.
func (j *Journey) WriteText(out io.Writer, o TextOptions) error {
	if o.Location == nil {
		o.Location = time.Local
	}
	p := &printer{out: out, TextOptions: o, asked: j.Asked}
	p.journey(j)
	return p.err
}

// printer writes and keeps the first error.
type printer struct {
	TextOptions
	out   io.Writer
	asked time.Time
	err   error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format, args...)
	}
}

const (
	red, green, yellow, bold, plain = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
)

func (p *printer) paint(color, s string) string {
	if !p.Color {
		return s
	}
	return color + s + plain
}

func (p *printer) journey(j *Journey) {
	if j.Gone {
		p.printf("%s is gone; this is what the journal remembers.\n\n", j.Target)
	}
	if j.Pod != nil {
		p.printf("%s  %s\n", p.paint(bold, "pod "+j.Pod.Namespace+"/"+j.Pod.Name), podLine(j.Pod))
		if j.Waiting != nil || j.Problem != nil {
			p.trouble(j.Waiting, j.Problem)
		}
		p.printf("\n")
	}
	switch {
	case j.Snapshot != nil:
		p.snapshot(j)
	case j.Group != nil:
		p.group(j)
	case j.Schedule != nil:
		p.schedule(j)
	}
	inline := 0
	for i := range j.Volumes {
		v := &j.Volumes[i]
		if v.Source != "" && v.Problem == nil && v.Driver == "" {
			inline++
			continue
		}
		p.volume(v)
	}
	if inline > 0 {
		var told []string
		for i := range j.Volumes {
			if v := &j.Volumes[i]; v.Source != "" && v.Problem == nil && v.Driver == "" {
				told = append(told, fmt.Sprintf("%s (%s)", v.Name, v.Source))
			}
		}
		p.printf("Without a claim: %s\n", strings.Join(told, ", "))
	}
	for _, n := range j.Notes {
		p.printf("Note: %s\n", n)
	}
}

func podLine(s *PodState) string {
	words := []string{s.Phase}
	if s.Ready {
		words[0] += ", ready"
	}
	if s.Node != "" {
		words = append(words, "on node "+s.Node)
	}
	if s.Deleting {
		words = append(words, "being deleted")
	}
	return strings.Join(words, "  ")
}

func (p *printer) volume(v *Volume) {
	if v.Source != "" {
		p.printf("%s  %s\n", p.paint(bold, "volume "+v.Name), v.Source)
	}
	if c := v.Claim; c != nil {
		line := []string{c.Phase}
		add(&line, c.Requested, "%s")
		add(&line, c.Modes, "%s")
		add(&line, v.Class, "class %s")
		if c.Deleting {
			line = append(line, "being deleted")
		}
		p.printf("%s  %s\n", p.paint(bold, "claim "+c.Namespace+"/"+c.Name), strings.Join(line, "  "))
	}
	if s := v.PV; s != nil {
		var line []string
		add(&line, s.Phase, "%s")
		if s.Missing {
			line = append(line, "missing")
		}
		add(&line, s.Capacity, "%s")
		add(&line, v.Driver, "driver %s")
		add(&line, s.Handle, "handle %s")
		if s.Deleting {
			line = append(line, "being deleted")
		}
		p.printf("%s\n", strings.Join(append([]string{p.paint(bold, "volume "+s.Name)}, line...), "  "))
	} else if v.Driver != "" {
		p.printf("driver %s\n", v.Driver)
	}
	if v.Note != "" {
		p.printf("%s\n", v.Note)
	}
	if v.Path != "" {
		p.printf("at %s\n", v.Path)
	}
	if len(v.UsedBy) > 0 {
		p.printf("also used by %s\n", strings.Join(v.UsedBy, ", "))
	}
	p.steps(v.Steps)
	p.trouble(v.Waiting, v.Problem)
	if v.Waiting == nil && v.Problem == nil && v.Total > 0 && len(v.Steps) > 0 {
		last := lastUp(v.Steps)
		p.printf("\n%s\n", p.paint(green, fmt.Sprintf("%s to %s: %s", v.Steps[0].Step, strings.ToLower(string(last.Step)), span(v.Total, v.Steps[0].Coarse || last.Coarse))))
	}
	p.printf("\n")
}

// lastUp is the last step on the way to a running pod that is done.
func lastUp(steps []Step) *Step {
	last := &steps[0]
	for i := range steps {
		if s := &steps[i]; s.State == trace.Done && !s.Time.IsZero() && s.rank() <= order[trace.Running] {
			last = s
		}
	}
	return last
}

func add(line *[]string, value, format string) {
	if value != "" {
		*line = append(*line, fmt.Sprintf(format, value))
	}
}

func (p *printer) steps(steps []Step) {
	if len(steps) == 0 {
		return
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\n  \tSTEP\tAT\tAFTER\tTOOK\tWHAT\n")
	told := "" // an error that later steps wait for is told once
	for i := range steps {
		s := &steps[i]
		text := what(s)
		if told != "" && s.State == trace.Waiting {
			text = strings.ReplaceAll(text, told, "see above")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", mark(s), s.Step, p.at(s), after(s), took(s), text)
		if s.State == trace.Failed {
			told = firstLine(s.Error)
		}
	}
	w.Flush()
	for line := range strings.Lines(b.String()) {
		line = strings.TrimRight(line, " \n")
		switch {
		case strings.HasPrefix(line, markFailed):
			line = p.paint(red, line)
		case strings.HasPrefix(line, markOpen):
			line = p.paint(yellow, line)
		}
		p.printf("%s\n", line)
	}
}

const (
	markDone, markOpen, markFailed = "  ok", "  ..", "  !!"
)

func mark(s *Step) string {
	switch {
	case s.State == trace.Done:
		return markDone
	case s.Failures > 0:
		return markFailed
	}
	return markOpen
}

func (p *printer) at(s *Step) string {
	switch {
	case s.Time.IsZero():
		return "-"
	case s.Coarse:
		return s.Time.In(p.Location).Format("15:04:05")
	}
	return s.Time.In(p.Location).Format("15:04:05.000")
}

func after(s *Step) string {
	if s.After == 0 {
		return "-"
	}
	return span(s.After, s.Coarse)
}

func took(s *Step) string {
	if s.Took == 0 {
		return "-"
	}
	return span(s.Took, false)
}

func what(s *Step) string {
	var parts []string
	switch {
	case s.State == trace.Failed:
		parts = append(parts, firstLine(s.Error))
	case s.State == trace.Began:
		parts = append(parts, strings.TrimSpace("under way "+firstLine(s.Detail)))
	case s.Detail != "":
		parts = append(parts, firstLine(s.Detail))
	}
	if s.Failures > 0 {
		parts = append(parts, fmt.Sprintf("(failed %s)", times(s.Failures)))
	}
	if s.Waited >= 1 {
		parts = append(parts, fmt.Sprintf("(waited %s: %s)", span(s.Waited, false), firstLine(s.longest)))
	}
	return strings.Join(parts, " ")
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func firstLine(s string) string {
	line, _, more := strings.Cut(strings.TrimSpace(s), "\n")
	if more {
		line += " …"
	}
	return line
}

// trouble prints what is waited for and what is wrong.
func (p *printer) trouble(w *Waiting, problem *Problem) {
	if w == nil && problem == nil {
		return
	}
	p.printf("\n")
	if w != nil {
		line := w.For
		if !w.Since.IsZero() {
			line += fmt.Sprintf(", since %s (%s)", w.Since.In(p.Location).Format("15:04:05"), span(ms(p.asked.Sub(w.Since)), false))
		}
		p.printf("%s  %s\n", p.paint(yellow, "Waits for "), line)
		if w.Holder != "" {
			line := strings.Join(strings.Fields(w.Holder), " ")
			if !w.HolderSince.IsZero() {
				line += fmt.Sprintf(", since %s (%s)", w.HolderSince.In(p.Location).Format("15:04:05"), span(ms(p.asked.Sub(w.HolderSince)), false))
			}
			p.printf("%s  %s\n", p.paint(yellow, "Held by   "), line)
		}
		if w.Queue != nil {
			p.printf("%s  %s\n", p.paint(yellow, "Queue     "), w.Queue.line(p.asked))
		}
	}
	if problem == nil {
		return
	}
	p.printf("%s  %s\n", p.paint(red, "Why       "), problem.What)
	if problem.Message != "" && problem.Message != problem.What {
		from := problem.From
		if problem.Count > 1 {
			from += ", " + times(problem.Count)
		}
		if !problem.Time.IsZero() {
			from += ", last at " + problem.Time.In(p.Location).Format("15:04:05")
		}
		p.printf("%s  %s (%s)\n", p.paint(red, "Told      "), strings.Join(strings.Fields(problem.Message), " "), from)
	}
	if problem.Advice != "" {
		p.printf("%s  %s\n", p.paint(green, "What to do"), problem.Advice)
	}
}

// span prints milliseconds as a person reads them.
func span(millis float64, coarse bool) string {
	d := time.Duration(millis * float64(time.Millisecond))
	about := ""
	if coarse {
		about = "~"
	}
	switch {
	case d < 0:
		return "-" + span(-millis, coarse)
	case coarse && d < time.Minute:
		return fmt.Sprintf("%s%.0f s", about, d.Seconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", millis)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", millis)
	case d.Round(100*time.Millisecond) < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return about + d.Round(time.Second).String()
}
