package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// table collects the figures and prints them as Markdown.
type table struct{ rows [][3]string }

func (t *table) row(subject, work, figure string) {
	t.rows = append(t.rows, [3]string{subject, work, figure})
}

// durations adds the median, the 99th percentile and the extremes.
func (t *table) durations(subject, work string, d []time.Duration) {
	slices.Sort(d)
	at := func(q float64) float64 { return d[min(len(d)-1, int(q*float64(len(d))))].Seconds() * 1000 }
	t.row(subject, work, fmt.Sprintf("p50 %.0f ms, p99 %.0f ms (min %.0f, max %.0f)", at(0.5), at(0.99), at(0), at(1)))
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n| controllers | work | measured |\n|---|---|---|\n")
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s | %s | %s |\n", r[0], r[1], r[2])
	}
}
