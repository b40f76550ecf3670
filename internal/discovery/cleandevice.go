package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// EnvDevice names the device for a cleaning program, as the original does.
const EnvDevice = envDevice

// CleanDevice wipes the device at path as the blockCleanerCommand says, which is one of the original's scripts: what a cleaning Job in
// Berth's own image runs. disk is the identity that the device must have; that of a loop device depends on who looks, and is not compared.
// raw says that pods get the device itself. The device is held exclusively meanwhile; what is killed begins anew.
func CleanDevice(ctx context.Context, path, disk string, raw bool, command []string, progress func(string)) error {
	c, _, err := newCleaner(command, true)
	if err != nil {
		return fmt.Errorf("blockCleanerCommand: %w", err)
	}
	if c.method == external {
		return fmt.Errorf("%s is not in this image: set JOB_CONTAINER_IMAGE to one that has it", command[0])
	}
	f, dev, err := openDevice(path, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %s is mounted, swap, or part of another device", errInUse, path)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if disk != "" && !strings.HasPrefix(disk, "loop-") && dev.id != disk {
		return fmt.Errorf("the disk at %s (%s) is not %s: it is not touched", path, dev.id, disk)
	}
	w := wiper{f: f, dev: dev, raw: raw, progress: progress}
	return w.wipe(ctx, c)
}
