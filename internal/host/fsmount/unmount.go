package fsmount

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
)

// forceAfter is how long the server of a share may take to answer to its unmount before the waiting requests are failed.
const forceAfter = 20 * time.Second

// stacked bounds the mounts over each other at one directory that Unmount takes away.
const stacked = 16

// usersNamed bounds the processes that an error names.
const usersNamed = 5

// Unmount takes away what is mounted at the directory below root. Nothing mounted, or no such directory, is success. A share whose
// server does not answer is given up after some time: what was written to it and not yet sent is lost, which the server's absence
// had decided before. A mount in use is an error that names its users; it is never only hidden (MNT_DETACH).
func Unmount(ctx context.Context, root, below string) error {
	t, err := Open(root, below)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.Close()
	m, err := t.Mounted()
	if err == nil && m == nil { // a mount may be under way
		held, err := t.lock(ctx, false)
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer held.Close()
		m, err = t.Mounted()
		if err != nil || m == nil {
			return err
		}
	}
	for range stacked {
		if err != nil || m == nil {
			return err
		}
		if err := t.unmount(ctx); err != nil {
			return err
		}
		m, err = t.Mounted()
	}
	return fmt.Errorf("%s is mounted over itself more than %d times", t.path, stacked)
}

// unmount takes away the topmost mount. No link is followed: the parent is open, the last element is not followed.
func (t *Target) unmount(ctx context.Context) error {
	at := fmt.Sprintf("/proc/self/fd/%d/%s", t.parent.Fd(), t.name)
	return boundary.Do("fsmount/unmount", func() error {
		done := make(chan error, 1)
		go func() { done <- unix.Unmount(at, unix.UMOUNT_NOFOLLOW) }()
		timer := time.NewTimer(forceAfter)
		defer timer.Stop()
		for {
			select {
			case err := <-done:
				return t.unmounted(err)
			case <-timer.C:
				// It fails the requests that the first call waits for, whatever it answers itself.
				go func() { _ = unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_FORCE) }()
			case <-ctx.Done():
				return fmt.Errorf("unmount %s: the kernel still waits for the server: %w", t.path, ctx.Err())
			}
		}
	})
}

func (t *Target) unmounted(err error) error {
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	err = fmt.Errorf("unmount %s: %w", t.path, err)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	users := mountpoint.Users(t.path)
	if len(users) == 0 {
		return err
	}
	if more := len(users) - usersNamed; more > 0 {
		users = append(users[:usersNamed], fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("%w: in use by process %s", err, strings.Join(users, ", "))
}
