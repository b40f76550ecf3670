// bench prints Berth's figures as a table, with upstream's volume controllers measured in the same run on the same
// machine: `make bench`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"berth.io/berth/test/instance"
)

// plan says how much to measure.
type plan struct {
	bin           string
	runs, burst   int
	upstreamRuns  int
	upstreamBurst int
	idle          time.Duration
	starts        int
	containers    int
	snapshots     int
	copies        int
	deltas        int
}

func main() {
	var p plan
	flag.StringVar(&p.bin, "bin", "bin", "directory of the programs")
	flag.IntVar(&p.runs, "runs", 500, "claims with a pod, one at a time")
	flag.IntVar(&p.burst, "burst", 200, "claims with a pod at once")
	flag.IntVar(&p.upstreamRuns, "upstream-runs", 30, "the same with --controllers=upstream")
	flag.IntVar(&p.upstreamBurst, "upstream-burst", 50, "the same with --controllers=upstream")
	flag.DurationVar(&p.idle, "idle", time.Minute, "how long to watch the idle instance")
	flag.IntVar(&p.starts, "starts", 5, "second starts")
	flag.IntVar(&p.containers, "containers", 20, "new volumes for containers, by the volume plugin")
	flag.IntVar(&p.snapshots, "snapshots", 20, "snapshots of a busy volume")
	flag.IntVar(&p.copies, "copies", 20, "restores, and as many clones")
	flag.IntVar(&p.deltas, "deltas", 10, "times that changed blocks are asked for")
	flag.DurationVar(&slow, "slow", slow, "journeys that take longer are explained on standard error")
	flag.Parse()
	if err := run(context.Background(), p); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan) error {
	if err := os.Setenv(instance.EnvBin, p.bin); err != nil {
		return err
	}
	var t table
	err := measure(ctx, p, &t)
	t.print(os.Stdout) // also what was measured before an error
	return err
}

// measure runs one instance with our controllers through everything, then one with upstream's through the same work.
func measure(ctx context.Context, p plan, t *table) error {
	if err := flexvolume(p.bin, t); err != nil {
		return err
	}
	if err := disk(p.runs, t); err != nil {
		return err
	}
	ours, err := newSubject("berth", "--pool-size", "24Gi")
	if err != nil {
		return err
	}
	defer ours.remove()
	if err := ours.start(ctx); err != nil {
		return err
	}
	if p.idle > 0 {
		if err := ours.idle(ctx, p.idle, t); err != nil {
			return err
		}
	}
	if err := ours.journeys(ctx, p.runs, "1Gi", t); err != nil {
		return err
	}
	if err := ours.atOnce(ctx, p.burst, "64Mi", t); err != nil {
		return err
	}
	if err := ours.secondStart(ctx, p.starts, t); err != nil {
		return err
	}
	if err := ours.snapshots(ctx, p.snapshots, p.copies, t); err != nil {
		return err
	}
	if err := ours.down(ctx); err != nil {
		return err
	}
	if err := containers(ctx, p.containers, t); err != nil {
		return err
	}
	if err := deltas(ctx, p.deltas, t); err != nil {
		return err
	}
	if p.upstreamRuns == 0 {
		return nil
	}
	theirs, err := newSubject("upstream", "--pool-size", "24Gi", "--controllers", "upstream")
	if err != nil {
		return err
	}
	defer theirs.remove()
	if err := theirs.start(ctx); err != nil {
		return err
	}
	if err := theirs.journeys(ctx, p.upstreamRuns, "1Gi", t); err != nil {
		return err
	}
	if err := theirs.atOnce(ctx, p.upstreamBurst, "64Mi", t); err != nil {
		return err
	}
	return theirs.down(ctx)
}
