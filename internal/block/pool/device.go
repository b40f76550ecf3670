package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/host/xfs"
)

// openDevice opens a pool on a raw device: one that holds a pool is used, a blank one is made a pool, anything else is
// refused.
func (p *Pool) openDevice(ctx context.Context) error {
	path := p.o.Device
	dev, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("%w: %s is not a block device", ErrForeign, path)
	}
	size, err := dev.Seek(0, 2)
	if err != nil {
		return err
	}
	p.account.limit = size
	sector, err := unix.IoctlGetInt(int(dev.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("sector size of %s: %w", path, err)
	}
	p.sector = uint32(max(sector, 512))
	at := MountPoint(p.o.Dir, p.o.Name)
	if is, err := mountpoint.Is(at); err != nil {
		return err
	} else if is {
		if err := p.openRoot(); err != nil {
			return fmt.Errorf("%w: %s is a mount point, and not of a pool: %w", ErrForeign, at, err)
		}
		return sameDevice(p.root, dev)
	}
	if err := p.claimDevice(ctx, dev, size); err != nil {
		return err
	}
	if err := p.mountOn(path); err != nil {
		return err
	}
	// The device may have grown while it was not mounted.
	if err := boundary.Do("pool/grow-device-filesystem", func() error { return xfs.Grow(p.root, size) }); err != nil {
		return err
	}
	g, err := xfs.GeometryOf(p.root)
	p.account.size = g.DataBytes
	return err
}

// claimDevice makes sure that dev holds a pool, formatting it when it is blank by three witnesses: the signatures known
// here, blkid's and wipefs's, and zeros at both ends.
func (p *Pool) claimDevice(ctx context.Context, dev *os.File, size int64) error {
	claimed := isClaimed(dev)
	sb, err := xfs.ReadSuperblock(dev)
	switch {
	case err == nil && sb.Label == label && !sb.Unfinished:
		if sb.DataBytes > size {
			return fmt.Errorf("%s: %w: truncated: the device has %d bytes, its pool %d; nothing was changed", dev.Name(), ErrDamaged, size, sb.DataBytes)
		}
		if claimed {
			return boundary.Do("pool/settle-device", func() error { return writeClaim(dev, false) })
		}
		return nil
	case errors.Is(err, xfs.ErrDamaged):
		// Before the claim, which a volume's user can write where a pool keeps volumes: it speaks only for what mkfs leaves.
		return fmt.Errorf("%s: %w: %w; nothing was changed", dev.Name(), ErrDamaged, err)
	case claimed:
		// A crash in the middle of mkfs, on a device that was blank before it.
		if err := mustBeFree(dev.Name()); err != nil {
			return err
		}
	default:
		if err := mustBeBlank(ctx, dev, size); err != nil {
			return err
		}
	}
	if size < minimumPool {
		return fmt.Errorf("%w: %s has %d MiB, a pool needs at least %d MiB", ErrNoSpace, dev.Name(), size/mib, minimumPool/mib)
	}
	if err := boundary.Do("pool/claim-device", func() error { return writeClaim(dev, true) }); err != nil {
		return err
	}
	if err := boundary.Do("pool/make-device-filesystem", func() error { return makeFilesystem(ctx, dev.Name(), "-f") }); err != nil {
		return err
	}
	return boundary.Do("pool/settle-new-device", func() error { return writeClaim(dev, false) })
}

// The claim stands on a device from before mkfs until after it, at a place that mkfs.xfs leaves alone, so that what a crash in
// between leaves is known to be ours. It must not stay: a pool whose header is damaged later is not to be made anew.
const (
	claim   = "berth: a pool is being made here"
	claimAt = 512 << 10
)

func isClaimed(dev *os.File) bool {
	b := make([]byte, len(claim))
	_, err := dev.ReadAt(b, claimAt)
	return err == nil && string(b) == claim
}

func writeClaim(dev *os.File, stands bool) error {
	b := make([]byte, 4096)
	if stands {
		copy(b, claim)
	}
	if _, err := dev.WriteAt(b, claimAt); err != nil {
		return err
	}
	return dev.Sync()
}

// mustBeFree: an exclusive open fails while anything has the device mounted or mapped, or makes a filesystem on it.
func mustBeFree(device string) error {
	x, err := os.OpenFile(device, os.O_RDONLY|os.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return x.Close()
}

func mustBeBlank(ctx context.Context, dev *os.File, size int64) error {
	if err := mustBeFree(dev.Name()); err != nil {
		return err
	}
	found, err := filesystem.Recognise(dev, size)
	if err == nil && found == "" {
		found, err = signatures(ctx, dev.Name())
	}
	if err != nil {
		return err
	}
	if found != "" {
		return fmt.Errorf("%w: %s holds %s; a device becomes a pool only when it is blank (wipefs -a and zeros in its first and last MiB make it so); nothing was changed",
			ErrForeign, dev.Name(), found)
	}
	return nil
}

// signatures asks wipefs, which shows all signatures, and blkid, which knows how to weigh them.
func signatures(ctx context.Context, device string) (string, error) {
	out, err := command.Run(ctx, 20*time.Second, "wipefs", "--no-act", "--parsable", device)
	if err != nil {
		return "", fmt.Errorf("look for signatures on %s: %w", device, err)
	}
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line[strings.LastIndexByte(line, ',')+1:], nil
		}
	}
	out, err = command.Run(ctx, 20*time.Second, "blkid", "-p", "-o", "export", device)
	var exit *command.Error
	if errors.As(err, &exit) && exit.Exit == 2 {
		return "", nil // nothing found
	}
	if err != nil {
		return "", fmt.Errorf("look for signatures on %s: %w", device, err)
	}
	for line := range strings.Lines(out) {
		if kind, ok := strings.CutPrefix(strings.TrimSpace(line), "TYPE="); ok {
			return kind, nil
		}
	}
	return "", nil
}
