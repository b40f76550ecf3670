package intree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/xfs"
	"berth.io/berth/internal/plugin"
)

// Deadlines of the programs. mkfs and fsck of a large disk take minutes; reading its signatures does not.
const (
	probeWithin = 30 * time.Second
	makeWithin  = 10 * time.Minute
	mountWithin = 2 * time.Minute
	growWithin  = 10 * time.Minute
)

// probed is how much of a device's beginning must be zero before it counts as empty: past every partition table,
// volume manager label and filesystem superblock.
const probed = 4 << 20

// FormatAndMount mounts the device of the volume with that UID at dir, <plugin>/mounts/<volume>, and makes a filesystem first when the
// device is empty. A device on which no filesystem is recognised but that is not empty is refused: it holds somebody's data.
func FormatAndMount(ctx context.Context, pv types.UID, device, dir, fsType string, options []string) error {
	found, err := formatOf(ctx, device)
	if err != nil {
		return err
	}
	began := formatBegan(dir, device, pv)
	if found == "xfs" && began && unfinishedXFS(device) {
		found = ""
	}
	if found != "" {
		if err := formatEnded(dir); err != nil {
			return err
		}
		return mountDevice(ctx, device, dir, found, fsType, options)
	}
	if !began {
		if err := mustBeEmpty(device); err != nil {
			return err
		}
	}
	if err := beginFormat(dir, device, pv); err != nil {
		return err
	}
	err = boundary.Do("intree/format", func() error { return makeFilesystem(ctx, device, fsType) })
	if err == nil {
		err = mountDevice(ctx, device, dir, "", fsType, options)
	}
	if err != nil {
		if mustBeEmpty(device) == nil {
			// A mkfs that wrote nothing leaves nothing to go on with; what somebody writes there later is theirs.
			err = errors.Join(err, formatEnded(dir))
		}
		return err
	}
	return formatEnded(dir)
}

// formatOf names the filesystem on the device, or what else blkid recognises there, which then fails to mount; empty when it
// recognises nothing.
func formatOf(ctx context.Context, device string) (string, error) {
	out, err := command.Run(ctx, probeWithin, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
	const nothing = 2
	var failed *command.Error
	switch {
	case errors.As(err, &failed) && failed.Exit == nothing:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read the format of %s: %w", device, err)
	}
	partitions := false
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "TYPE":
			return value, nil
		case "PTTYPE":
			partitions = true
		}
	}
	if partitions {
		return "", fmt.Errorf("%s has a partition table: name one of its partitions", device)
	}
	return "", nil
}

// unfinishedXFS says whether the XFS on the device is what a mkfs left that was cut: it writes the superblock early, and the
// kernel mounts none that says so, hence nobody's data can be in it.
func unfinishedXFS(device string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	sb, err := xfs.ReadSuperblock(f)
	return err == nil && sb.Unfinished
}

// makeFilesystem runs mkfs with upstream's options. boundary: held by the caller.
func makeFilesystem(ctx context.Context, device, fsType string) error {
	args := []string{device}
	switch fsType {
	case "ext3", "ext4":
		args = []string{"-F", "-m0", device} // -F: a whole disk is meant; -m0: nobody needs blocks of root's own
	case "xfs":
		args = []string{"-f", device}
	}
	if _, err := command.Run(ctx, makeWithin, "mkfs."+fsType, args...); err != nil {
		return fmt.Errorf("make %s on %s: %w", fsType, device, err)
	}
	return nil
}

// mountDevice mounts the device, after the check that is safe to run unasked when a filesystem was found there. It goes through
// mount(8): a user's options may be for one of its helpers.
func mountDevice(ctx context.Context, device, dir, found, fsType string, options []string) error {
	err := boundary.Do("intree/mount-device", func() error {
		if found != "" && !slices.Contains(splitOptions(options), "ro") {
			if err := check(ctx, device, found); err != nil {
				return err
			}
		}
		list := strings.Join(append([]string{"defaults"}, options...), ",")
		if _, err := command.Run(ctx, mountWithin, "mount", "-t", fsType, "-o", list, "--", device, dir); err != nil {
			return fmt.Errorf("mount %s (%s) at %s: %w", device, fsType, dir, err)
		}
		return nil
	})
	if err != nil && found != "" && found != fsType {
		return fmt.Errorf("%w (the device holds %s, and the volume asks for %s)", err, found, fsType)
	}
	return err
}

// check repairs what can be repaired without asking. boundary: held by the caller.
func check(ctx context.Context, device, found string) error {
	_, err := command.Run(ctx, makeWithin, "fsck", "-a", device)
	const uncorrected = 4
	var failed *command.Error
	switch {
	case err == nil, errors.Is(err, command.ErrMissing):
	case errors.As(err, &failed) && failed.Exit&uncorrected == 0: // repaired, or no checker for this kind
	default:
		return fmt.Errorf("check the %s on %s: %w", found, device, err)
	}
	return nil
}

func splitOptions(options []string) []string {
	var out []string
	for _, list := range options {
		for o := range strings.SplitSeq(list, ",") {
			out = append(out, strings.TrimSpace(o))
		}
	}
	return out
}

// mustBeEmpty reads the beginning of the device.
func mustBeEmpty(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	block, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := 0; at < probed; {
		n, err := f.Read(block)
		if !bytes.Equal(block[:n], zero[:n]) {
			return fmt.Errorf("%s holds data but no filesystem that is known here; it is not formatted. To give it up: blkdiscard or dd zeroes over its first %d MiB", device, probed>>20)
		}
		at += n
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Expand grows the filesystem to the size of its device. A directory has no size of its own, and a raw device is as
// large as it is.
func (l *local) Expand(ctx context.Context, r plugin.ExpandRequest) error {
	device, err := kindOf(r.Volume)
	if err != nil || !device || r.Volume.Mode() == "Block" {
		return err
	}
	return GrowFilesystem(ctx, r.Volume.PV.Spec.Local.Path, l.globalDir(r.Volume.PV.Name))
}

// GrowFilesystem grows the filesystem on the device, which is mounted at dir, to the device's size.
func GrowFilesystem(ctx context.Context, device, dir string) error {
	found, err := formatOf(ctx, device)
	if err != nil {
		return err
	}
	var program string
	var args []string
	switch found {
	case "ext2", "ext3", "ext4":
		program, args = "resize2fs", []string{device}
	case "xfs":
		program, args = "xfs_growfs", []string{"-d", dir}
	case "btrfs":
		program, args = "btrfs", []string{"filesystem", "resize", "max", dir}
	default:
		return fmt.Errorf("grow %s: a filesystem of type %q can't be grown here: %w", device, found, plugin.ErrExpandInfeasible)
	}
	return boundary.Do("intree/grow-filesystem", func() error {
		if _, err := command.Run(ctx, growWithin, program, args...); err != nil {
			return fmt.Errorf("grow the %s on %s: %w", found, device, err)
		}
		return nil
	})
}
