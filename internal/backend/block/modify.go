package block

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
)

// Mutable parameters (a VolumeAttributesClass in Kubernetes). They are properties of the volume's loop device: written down with
// the volume, in force at once where it is attached, and set again at each stage.
const (
	parameterReadAhead = "readAheadKiB"
	parameterScheduler = "scheduler"
)

const mostReadAheadKiB = 16 << 10

// limits are what others call a limit of I/O. Linux limits I/O per control group of the processes that write, and these are not
// ours; a loop device as a whole cannot be limited.
var limits = []string{"iops", "throughput", "bandwidth", "bps"}

// CheckMutable implements backend.Modifier.
func (b *Backend) CheckMutable(parameters map[string]string) error {
	_, err := queueOf(parameters)
	return err
}

// CheckMutable refuses what no node's backend would take: ErrInvalid. Which schedulers there are, the node's kernel alone knows.
func CheckMutable(parameters map[string]string) error {
	_, err := queueFor(parameters, func() ([]string, error) { return []string{parameters[parameterScheduler]}, nil })
	return err
}

// queueOf reads the parameters for this node's kernel. What is not named has its default.
func queueOf(parameters map[string]string) (loop.Queue, error) {
	return queueFor(parameters, loop.Schedulers)
}

func queueFor(parameters map[string]string, schedulers func() ([]string, error)) (loop.Queue, error) {
	var q loop.Queue
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[name]
		switch {
		case name == parameterReadAhead:
			n, err := strconv.Atoi(value)
			if err != nil || n != 0 && n < 4 || n > mostReadAheadKiB {
				return q, fmt.Errorf("%w: mutable parameter %s: %q is not a number of KiB from 4 to %d, or 0 for the kernel's choice", backend.ErrInvalid, name, clip(value), mostReadAheadKiB)
			}
			q.ReadAheadKiB = n
		case name == parameterScheduler:
			offered, err := schedulers()
			if err != nil {
				return q, err
			}
			if !slices.Contains(offered, value) {
				return q, fmt.Errorf("%w: mutable parameter %s: %q is not a scheduler that this kernel offers (%s)", backend.ErrInvalid, name, clip(value), strings.Join(offered, ", "))
			}
			q.Scheduler = value
		case slices.ContainsFunc(limits, func(l string) bool { return strings.Contains(strings.ToLower(name), l) }):
			return q, fmt.Errorf("%w: mutable parameter %s: Linux limits I/O for the control group of the processes that write, not for a loop device; set a limit where they are started (io.max)", backend.ErrInvalid, clip(name))
		default:
			return q, fmt.Errorf("%w: unknown mutable parameter %q (known: %s, %s)", backend.ErrInvalid, clip(name), parameterReadAhead, parameterScheduler)
		}
	}
	return q, nil
}

// Modify implements backend.Modifier.
func (b *Backend) Modify(ctx context.Context, id string, parameters map[string]string) error {
	if _, err := b.get(id); err != nil {
		return err
	}
	if err := b.CheckMutable(parameters); err != nil {
		return err
	}
	h, err := b.holds.Acquire(ctx, id, "ControllerModifyVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	v, err := b.get(id) // again: what the last holder did counts
	if err != nil {
		return err
	}
	all := maps.Clone(v.Mutable)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, parameters)
	q, err := queueOf(all)
	if err != nil {
		return err
	}
	h.Step("noting its parameters")
	if err := b.o.Pool.SetMutable(id, all); err != nil {
		return translate(err)
	}
	dev, attached, err := b.openLoop(id)
	if err != nil || !attached {
		return err
	}
	defer dev.Close()
	h.Step("setting the queue of its device")
	return boundary.Do("backend-block/modify-queue", func() error {
		if q.ReadAheadKiB == 0 { // whatever is noted: a try that was killed has noted it already
			if err := loop.ResetReadAhead(dev); err != nil {
				return err
			}
		}
		return loop.SetQueue(dev, q)
	})
}

// setQueue gives an attached volume's device the volume's parameters. They are a matter of speed: a volume is served without
// them where they cannot be set.
func (b *Backend) setQueue(v pool.Volume, dev *os.File) {
	q, err := queueOf(v.Mutable)
	if err == nil {
		err = boundary.Do("backend-block/set-queue", func() error { return loop.SetQueue(dev, q) })
	}
	if err != nil {
		b.o.Log.Warn("parameters of a volume are not in force", "volume", v.ID, "error", err)
	}
}

// resetQueue leaves nothing to the next file that gets the device.
func (b *Backend) resetQueue(id string) {
	v, err := b.get(id)
	if err != nil || len(v.Mutable) == 0 {
		return
	}
	dev, attached, err := b.openLoop(id)
	if err != nil || !attached {
		return
	}
	defer dev.Close()
	err = boundary.Do("backend-block/reset-queue", func() error {
		if v.Mutable[parameterReadAhead] != "" {
			if err := loop.ResetReadAhead(dev); err != nil {
				return err
			}
		}
		return loop.SetQueue(dev, loop.Queue{})
	})
	if err != nil {
		b.o.Log.Warn("the device of a volume keeps its queue's settings", "volume", id, "error", err)
	}
}

// clip shortens what a user gave, for an error.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
