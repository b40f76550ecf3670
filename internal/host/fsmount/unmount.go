package fsmount

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/mountpoint"
)

// Waits for the server of a share that is unmounted.
const (
	// silentAfter is how long it may take to answer a question before it counts as gone.
	silentAfter = 20 * time.Second
	// flushDeadline is for one that answers: whatever was written to it is still to be sent.
	flushDeadline = time.Hour
	// farewell is how long the kernel may take, once the mount is gone and nothing is left to write, to tell the server.
	farewell = 5 * time.Second
)

// stacked bounds the mounts over each other at one directory that Unmount takes away.
const stacked = 16

// usersNamed bounds the processes that an error names.
const usersNamed = 5

// Unmount takes away what is mounted at the directory below root. Nothing mounted, or no such directory, is success. A mount in
// use is an error that names its users; it is never only hidden (MNT_DETACH). A share is written out first, for as long as its server
// answers; one that is silent is given up: what was not sent is lost, as its absence had decided before. Then warning says so: it is for
// the volume's user, also where there is no error.
func Unmount(ctx context.Context, root, below string) (warning string, err error) {
	t, err := Open(root, below)
	if gone(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer t.Close()
	m, err := t.Mounted()
	if err == nil && m == nil { // a mount may be under way
		held, err := t.lock(ctx, false)
		if gone(err) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		defer held.Close()
		m, err = t.Mounted()
		if err != nil || m == nil {
			return "", err
		}
	}
	for range stacked {
		if err != nil || m == nil {
			return warning, err
		}
		forced, err := t.unmount(ctx, m)
		if forced {
			warning = fmt.Sprintf("the server of %s did not answer for %s, and the unmount was forced: what had been written and not yet sent to it is lost", m.Source, silentAfter)
		}
		if err != nil {
			return warning, err
		}
		m, err = t.Mounted()
		if err != nil {
			return warning, err
		}
	}
	return warning, fmt.Errorf("%s is mounted over itself more than %d times", t.path, stacked)
}

// unmount takes away the topmost mount, m. forced: requests that waited for its server were made to fail.
func (t *Target) unmount(ctx context.Context, m *Mount) (forced bool, err error) {
	if last, err := t.lastOfShare(m); err != nil {
		return false, err
	} else if last {
		return t.unmountShare(ctx)
	}
	done := t.detach(0)
	select {
	case err := <-done:
		return false, t.unmounted(err)
	case <-ctx.Done():
		return false, fmt.Errorf("unmount %s: the kernel still writes to it: %w", t.path, ctx.Err())
	}
}

// lastOfShare says whether the kernel would say goodbye to a server: not while the same filesystem is mounted elsewhere, too.
func (t *Target) lastOfShare(m *Mount) (bool, error) {
	switch m.FSType {
	case "nfs", "nfs4", "cifs", "smb3":
		all, err := MountsOf(m.Major, m.Minor)
		return len(all) < 2, err
	}
	return false, nil
}

// at is the directory by its open parent: no link is followed on the way, nor at its end with NOFOLLOW.
func (t *Target) at() string { return fmt.Sprintf("/proc/self/fd/%d/%s", t.parent.Fd(), t.name) }

// detach starts umount2(2), which nothing can call back.
func (t *Target) detach(flags int) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- boundary.Do("fsmount/unmount", func() error { return unix.Unmount(t.at(), unix.UMOUNT_NOFOLLOW|flags) })
	}()
	return done
}

// unmountShare: the kernel writes out and says goodbye to the server after the mount has left the table, and a process that ends then
// would cut it short. So what is to be written is written before.
//
// The questions are put by programs of their own: one that waits for a server can be killed, and then lets go of the mount; a thread of
// ours could not.
func (t *Target) unmountShare(ctx context.Context) (forced bool, err error) {
	_, err = command.Output(ctx, silentAfter, nil, "stat", "-f", "-c", "%T", t.path)
	switch {
	case ctx.Err() != nil:
		return false, fmt.Errorf("unmount %s: the server does not answer: %w", t.path, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return true, t.unmounted(t.farewell(ctx, unix.MNT_FORCE)) // it fails the requests that wait for the server
	}
	// Where it fails (the share is gone from the server) the unmount tells more.
	_ = boundary.Do("fsmount/flush", func() error {
		_, err := command.Output(ctx, flushDeadline, nil, "sync", "-f", t.path)
		return err
	})
	if ctx.Err() != nil {
		return false, fmt.Errorf("unmount %s: the server still takes what was written: %w", t.path, ctx.Err())
	}
	return false, t.unmounted(t.farewell(ctx, 0))
}

// farewell unmounts. Success is that the mount is gone from the table.
func (t *Target) farewell(ctx context.Context, flags int) error {
	done := t.detach(flags)
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	m, err := t.Mounted()
	if err == nil && m != nil {
		err = errors.New("the kernel still waits for the server")
	}
	return err
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
