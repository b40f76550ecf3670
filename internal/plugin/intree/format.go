package intree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	mount "k8s.io/mount-utils"
	"k8s.io/utils/exec"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// formatTimeout bounds mkfs, fsck and mount together.
const formatTimeout = 10 * time.Minute

// probed is how much of a device's beginning must be zero before it counts as empty: past every partition table,
// volume manager label and filesystem superblock.
const probed = 4 << 20

// formatAndMount mounts the device, and makes a filesystem first when the device is empty. A device on which no
// filesystem is recognised but that is not empty is refused: it holds somebody's data.
func formatAndMount(ctx context.Context, device, dir, fsType string, options []string) error {
	ctx, cancel := context.WithTimeout(ctx, formatTimeout)
	defer cancel()
	m := mount.NewSafeFormatAndMount(mount.New(""), exec.New())
	found, err := m.GetDiskFormat(device)
	if err != nil {
		return fmt.Errorf("read the format of %s: %w", device, err)
	}
	if found != "" {
		if err := formatEnded(dir); err != nil {
			return err
		}
	} else {
		if !formatBegan(dir, device) {
			if err := mustBeEmpty(device); err != nil {
				return err
			}
		}
		if err := beginFormat(dir, device); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err = boundary.Do("intree/format-and-mount", func() error {
		return m.FormatAndMount(device, dir, fsType, options)
	})
	if err != nil {
		if mustBeEmpty(device) == nil {
			// A mkfs that wrote nothing leaves nothing to go on with; what somebody writes there later is theirs.
			err = errors.Join(err, formatEnded(dir))
		}
		return err
	}
	return formatEnded(dir)
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
func (l *local) Expand(_ context.Context, r plugin.ExpandRequest) error {
	device, err := kindOf(r.Volume)
	if err != nil || !device || r.Volume.Mode() == "Block" {
		return err
	}
	return boundary.Do("intree/grow-filesystem", func() error {
		_, err := mount.NewResizeFs(exec.New()).Resize(r.Volume.PV.Spec.Local.Path, l.globalDir(r.Volume.PV.Name))
		return err
	})
}
