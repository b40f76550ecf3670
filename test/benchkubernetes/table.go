package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// table collects the figures and prints them as Markdown: a row for each work, a column for each side.
type table struct {
	rows []*row
}

type row struct{ work, reach, berth, official string }

// row finds or adds the row of a work.
func (t *table) row(work, reach string) *row {
	for _, r := range t.rows {
		if r.work == work {
			return r
		}
	}
	r := &row{work: work, reach: reach, berth: "–", official: "–"}
	t.rows = append(t.rows, r)
	return r
}

// set writes a side's figure, with the machine's load at that moment.
func (r *row) set(s side, figure string) {
	figure += ", load " + load()
	if s == berthSide {
		r.berth = figure
	} else {
		r.official = figure
	}
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n| work | to reach | berth | official |\n|---|---|---|---|\n")
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", r.work, r.reach, r.berth, r.official)
	}
}

// quantile of durations, which it sorts; the highest of fewer than 1/(1-q).
func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

// spread is the median, the 99th percentile and the extremes in milliseconds.
func spread(d []time.Duration) string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.0f", d.Seconds()*1000) }
	return fmt.Sprintf("p50 %s ms, p99 %s ms (%d runs, %s to %s)", ms(quantile(d, 0.5)), ms(quantile(d, 0.99)), len(d), ms(d[0]), ms(d[len(d)-1]))
}
