package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	storagev1 "k8s.io/api/storage/v1"
)

// measure goes through everything in one cluster: the idle processes of both sides at once, then the work of one side after the other, then
// the memory of both with many volumes.
func (b *bench) measure(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.startSides(ctx); err != nil {
		return err
	}
	for _, part := range b.parts { // in the order of allParts
		if err := map[string]func(context.Context) error{
			partIdle: b.idle, partNoop: b.noopClaims, partBlock: b.block, partMany: b.many,
		}[part](ctx); err != nil {
			return err
		}
	}
	return b.imageSize()
}

// idle measures the memory of processes that have nothing to do.
func (b *bench) idle(ctx context.Context) error {
	if err := b.memory(ctx, "no volumes", "≤ 80 MiB"); err != nil {
		return err
	}
	return b.nodeMemory("idle")
}

// noopClaims measures the work of both sides with drivers that do nothing.
func (b *bench) noopClaims(ctx context.Context) error {
	for _, s := range b.sides() {
		if err := b.work(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// imageSize tells how large the image is that the cluster's nodes fetch, where one has been made.
func (b *bench) imageSize() error {
	if !b.has(berthSide) {
		return nil
	}
	row := b.table.row("image", "≤ 150 MB")
	fi, err := os.Stat(b.image)
	if errors.Is(err, fs.ErrNotExist) {
		row.berth = "not made; `make image`"
		return nil
	}
	if err != nil {
		return err
	}
	row.berth = fmt.Sprintf("%.0f MB as a file", float64(fi.Size())/1e6)
	return nil
}

// sides are those that are asked for.
func (b *bench) sides() []side {
	switch b.only {
	case "berth":
		return []side{berthSide}
	case "official":
		return []side{officialSide}
	}
	return []side{berthSide, officialSide}
}

func (b *bench) has(s side) bool { return slices.Contains(b.sides(), s) }

// definitionFiles are the CustomResourceDefinitions of the source tree, below it.
var definitionFiles = []string{"internal/standalone/manifests/*snapshot*.yaml", "deploy/kubernetes/crds/*.yaml"}

// prepare brings up the cluster and the drivers that do nothing.
func (b *bench) prepare(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "starting a private API server with upstream's controllers")
	var err error
	if b.cluster, err = newCluster(ctx, b.bin); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	for _, pattern := range definitionFiles {
		files, err := filepath.Glob(filepath.Join(b.source, pattern))
		if err != nil {
			return err
		}
		if err := b.cluster.define(ctx, files...); err != nil {
			return err
		}
	}
	b.sockets = map[string]string{}
	var onNode []storagev1.CSINodeDriver
	for _, name := range b.drivers() {
		if b.sockets[name], err = b.cluster.noop(ctx, b.noop, name, b.detach); err != nil {
			return err
		}
		if err := b.cluster.driver(ctx, name, true); err != nil {
			return err
		}
		onNode = append(onNode, storagev1.CSINodeDriver{Name: name, NodeID: nodeName})
	}
	labels := map[string]string{}
	if b.has(berthSide) {
		if err := b.cluster.driver(ctx, blockDriver, true); err != nil {
			return err
		}
		onNode = append(onNode, storagev1.CSINodeDriver{Name: blockDriver, NodeID: nodeName, TopologyKeys: []string{blockTopology}})
		labels[blockTopology] = nodeName
	}
	return b.cluster.node(ctx, labels, onNode)
}

// drivers are the no-op drivers of the sides that are asked for.
func (b *bench) drivers() []string {
	var names []string
	if b.has(berthSide) {
		names = append(names, berthNoop...)
	}
	if b.has(officialSide) {
		names = append(names, officialDriver)
	}
	return names
}

func (b *bench) startSides(ctx context.Context) error {
	var err error
	if b.has(berthSide) {
		if b.node == nil {
			if b.node, err = b.berthNode(ctx); err != nil {
				return err
			}
		}
		if b.controller, err = b.berthController(ctx, fast...); err != nil {
			return err
		}
	}
	if b.has(officialSide) {
		if b.sidecars, err = b.cluster.official(b.plan.official, b.sockets[officialDriver]); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) stopSides() {
	b.controller.stop()
	b.controller = nil
	for _, p := range b.sidecars {
		p.stop()
	}
	b.sidecars = nil
}

// memory reads the memory of all processes at rest.
func (b *bench) memory(ctx context.Context, when, reach string) error {
	if err := b.quiet(ctx); err != nil {
		return err
	}
	row := b.table.row("memory of the controllers, "+when, reach)
	if b.has(berthSide) {
		m, err := b.controller.memory()
		if err != nil {
			return err
		}
		row.set(berthSide, "four drivers: "+m.String())
	}
	if b.has(officialSide) {
		sum, err := memoryOf(b.sidecars...)
		if err != nil {
			return err
		}
		figure := "one driver: " + sum.String() + " ="
		for i, p := range b.sidecars {
			m, err := p.memory()
			if err != nil {
				return err
			}
			if i > 0 {
				figure += " +"
			}
			figure += fmt.Sprintf(" %.0f", float64(m.rss)/(1<<20))
		}
		row.set(officialSide, figure)
	}
	return nil
}

// nodeMemory reads the memory of Berth's node process.
func (b *bench) nodeMemory(when string) error {
	if !b.has(berthSide) {
		return nil
	}
	m, err := b.node.memory()
	if err != nil {
		return err
	}
	row := b.table.row("memory of the node process, "+when, "anonymous ≤ 40 MiB")
	row.set(berthSide, m.String())
	row.official = "registrar and livenessprobe request 2 × 40 Mi; not built here"
	return nil
}

// block measures claims of Berth's own driver, whose volumes are made in a real pool: with Berth's controller, then, in its place, with the
// official provisioner against the same driver, which the node's socket offers, too.
func (b *bench) block(ctx context.Context) error {
	if !b.has(berthSide) {
		return nil
	}
	row := b.table.row(fmt.Sprintf("%d claims → PVs created, "+blockDriver, b.claims), "≥ 50/s")
	costing := b.table.row("one of them costs", "")
	before, err := b.cluster.costs(ctx, b.node, b.controller, b.node)
	if err != nil {
		return err
	}
	_, took, err := b.cluster.provision(ctx, "block", blockDriver, blockSize, b.claims, b.controller, b.node)
	if err != nil {
		return err
	}
	row.set(berthSide, perSecond(b.claims, took))
	after, err := b.cluster.costs(ctx, b.node, b.controller, b.node)
	if err != nil {
		return err
	}
	costing.set(berthSide, after.sub(before).per(b.claims))
	if err := b.nodeMemory(fmt.Sprintf("after %d volumes", b.claims)); err != nil {
		return err
	}
	if err := b.cluster.discard(ctx, "block"); err != nil {
		return err
	}
	if !b.has(officialSide) {
		return nil
	}
	b.controller.stop()
	figure, err := b.officialBlock(ctx, "block-official", b.claims, fast...)
	if err != nil {
		return err
	}
	if b.slowClaims > 0 {
		slow, err := b.officialBlock(ctx, "block-defaults", b.slowClaims)
		if err != nil {
			return err
		}
		figure += "; with its defaults " + slow
	}
	row.set(officialSide, figure)
	b.controller, err = b.berthController(ctx, fast...)
	return err
}

// officialBlock runs the official provisioner for Berth's driver, and ends it.
func (b *bench) officialBlock(ctx context.Context, run string, claims int, args ...string) (string, error) {
	p, err := b.cluster.sidecar(b.plan.official, sidecars[0], b.blockSocket(), args...)
	if err != nil {
		return "", err
	}
	defer p.stop()
	before, err := b.cluster.costs(ctx, b.node, p, b.node)
	if err != nil {
		return "", err
	}
	_, took, err := b.cluster.provision(ctx, run, blockDriver, blockSize, claims, p, b.node)
	if err != nil {
		return "", err
	}
	if len(args) > 0 {
		after, err := b.cluster.costs(ctx, b.node, p, b.node)
		if err != nil {
			return "", err
		}
		b.table.row("one of them costs", "").set(officialSide, after.sub(before).per(claims))
	}
	return perSecond(claims, took), b.cluster.discard(ctx, run)
}

// work measures claims and attachments of one side while the other has nothing to do.
func (b *bench) work(ctx context.Context, s side) error {
	driver, run, processes := officialDriver, "official", b.sidecars
	if s == berthSide {
		driver, run, processes = berthNoop[0], "berth", []*process{b.controller}
	}
	volumes, took, err := b.cluster.provision(ctx, run, driver, "1Gi", b.claims, processes...)
	if err != nil {
		return err
	}
	row := b.table.row(fmt.Sprintf("%d claims → PVs created, no-op driver", b.claims), "≥ 50/s")
	figure := perSecond(b.claims, took)
	row.set(s, figure)

	spareRun := run + "-spare"
	spare, _, err := b.cluster.provision(ctx, spareRun, driver, "1Gi", b.claims, processes...)
	if err != nil {
		return err
	}
	f, err := b.cluster.attachBehindDetach(ctx, driver, run, volumes, spare, b.attaches, b.rounds)
	if err != nil {
		return err
	}
	b.table.row("VolumeAttachment created → attached, idle", "").set(s, spread(f.idle))
	b.table.row(fmt.Sprintf("the same while %d detach, %s each", b.claims, b.detach), "p99 ≤ 2 × idle").set(s, fmt.Sprintf("%s, %d to %d still detaching; all detached after %.1f s",
		spread(f.busy), f.least, f.most, quantile(f.drained, 0.5).Seconds()))
	if err := b.cluster.discard(ctx, spareRun); err != nil {
		return err
	}
	if err := b.cluster.discard(ctx, run); err != nil {
		return err
	}
	if s == officialSide && b.slowClaims > 0 {
		return b.defaults(ctx, row, figure)
	}
	return nil
}

// defaults measures the official provisioner without its flags for the API.
func (b *bench) defaults(ctx context.Context, row *row, figure string) error {
	b.sidecars[0].stop()
	var err error
	if b.sidecars[0], err = b.cluster.sidecar(b.plan.official, sidecars[0], b.sockets[officialDriver]); err != nil {
		return err
	}
	_, took, err := b.cluster.provision(ctx, "defaults", officialDriver, "1Gi", b.slowClaims, b.sidecars[0])
	if err != nil {
		return err
	}
	row.set(officialSide, fmt.Sprintf("%s; with its defaults %s", figure, perSecond(b.slowClaims, took)))
	b.sidecars[0].stop()
	if b.sidecars[0], err = b.cluster.sidecar(b.plan.official, sidecars[0], b.sockets[officialDriver], fast...); err != nil {
		return err
	}
	return b.cluster.discard(ctx, "defaults")
}

// many measures memory with many volumes: of processes that saw them come, and of processes that found them at their start.
func (b *bench) many(ctx context.Context) error {
	if err := b.cluster.grow(ctx, "many", b.volumes, b.drivers()); err != nil {
		return err
	}
	if err := b.memory(ctx, fmt.Sprintf("%d volumes and claims made while it ran", b.volumes), "≤ 200 MiB"); err != nil {
		return err
	}
	b.stopSides()
	if err := b.startSides(ctx); err != nil {
		return err
	}
	return b.memory(ctx, fmt.Sprintf("%d volumes and claims found at its start", b.volumes), "≤ 200 MiB")
}

func perSecond(n int, took time.Duration) string {
	return fmt.Sprintf("%.0f/s (%d in %.1f s)", float64(n)/took.Seconds(), n, took.Seconds())
}
