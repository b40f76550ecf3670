// benchkubernetes prints the figures of Berth's controller and node process in a cluster as a table, beside the official sidecars in the
// same run on the same machine: `make bench-kubernetes`.
//
// The cluster is a private API server with upstream's kube-controller-manager controllers in its process; no kubelet is needed for what is
// measured here, so there is none, and a run takes minutes anywhere. Drivers that do nothing (noop/) leave the controllers' own time.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// plan says where the programs are and how much to measure.
type plan struct {
	bin, official, source string
	image, only           string
	parts                 parts
	volumes               int
	claims, slowClaims    int
	attaches, rounds      int
	detach                time.Duration
	settle                time.Duration
}

func main() {
	var p plan
	flag.StringVar(&p.bin, "bin", "bin", "directory of Berth's programs")
	flag.StringVar(&p.official, "official", "", "directory in which the official sidecars are built and kept (default: berth-sidecars in the user's cache)")
	flag.StringVar(&p.source, "source", ".", "the source tree, for the definitions to apply")
	flag.StringVar(&p.image, "image", "bin/berth-image.tar", "the image, whose size is told")
	flag.StringVar(&p.only, "only", "", "measure one side: berth or official")
	p.parts = allParts
	flag.Var(&p.parts, "parts", "what to measure, with commas between: "+strings.Join(allParts, ", "))
	flag.IntVar(&p.volumes, "volumes", 10000, "PersistentVolumes for the memory of a large cluster")
	flag.IntVar(&p.claims, "claims", 500, "claims at once; as many attachments are detached at once")
	flag.IntVar(&p.slowClaims, "default-claims", 60, "claims at once for the official provisioner with its default QPS of 5")
	flag.IntVar(&p.attaches, "attaches", 200, "attaches with nothing else to do")
	flag.IntVar(&p.rounds, "rounds", 2, "times that all are detached while others are attached")
	flag.DurationVar(&p.detach, "detach", 500*time.Millisecond, "how long a no-op driver takes to detach")
	flag.DurationVar(&p.settle, "settle", time.Minute, "how long a process is left alone before its memory is read")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, p); err != nil {
		fmt.Fprintln(os.Stderr, "bench-kubernetes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan) error {
	for _, dir := range []*string{&p.bin, &p.source} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	if p.official == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		p.official = filepath.Join(cache, "berth-sidecars")
	}
	b := &bench{plan: p}
	defer b.close()
	err := b.measure(ctx)
	b.table.print(os.Stdout) // also what was measured before an error
	return err
}

// bench is one run.
type bench struct {
	plan
	table      table
	cluster    *cluster
	noop       string            // the no-op driver's program
	sockets    map[string]string // of the no-op drivers, by name
	controller *process          // Berth's
	node       *process          // Berth's
	sidecars   []*process        // the official ones, in the order of sidecars
}

func (b *bench) close() { b.cluster.remove() }

// build makes the programs that only the bench needs.
func (b *bench) build(ctx context.Context) error {
	if b.has(officialSide) {
		script := exec.CommandContext(ctx, filepath.Join(b.source, "test/benchkubernetes/official.sh"), b.plan.official)
		script.Stdout, script.Stderr = os.Stderr, os.Stderr
		if err := script.Run(); err != nil {
			return fmt.Errorf("build the official sidecars: %w", err)
		}
	}
	b.noop = filepath.Join(b.cluster.dir, "noop")
	compile := exec.CommandContext(ctx, "go", "build", "-o", b.noop, "./test/benchkubernetes/noop")
	compile.Dir, compile.Stdout, compile.Stderr = b.source, os.Stderr, os.Stderr
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := compile.Run(); err != nil {
		return fmt.Errorf("build the no-op driver: %w", err)
	}
	return nil
}

// quiet lets processes come to rest.
func (b *bench) quiet(ctx context.Context) error {
	fmt.Fprintf(os.Stderr, "settling for %s\n", b.settle)
	select {
	case <-time.After(b.settle):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
