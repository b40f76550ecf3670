// Package apart runs a package's tests in a mount namespace of their own.
package apart

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/mountpoint"
)

// Env says that this process has a mount namespace of its own: a new one, with copies of the mounts of others, or one in which all
// mounts on loop devices are the tests' own. A process that a test starts must leave those alone.
const Env = "BERTH_TEST_OWN_MOUNTS"

const (
	copies = "copies"
	own    = "own"
)

// Run runs the tests in a mount namespace of their own, for TestMain to call; it does not return. A namespace that somebody else on
// this machine makes while they run would hold on to copies of their mounts, and so to their loop devices; and so does this one to
// others', until it lets go of the copies.
func Run(m *testing.M) {
	switch os.Getenv(Env) {
	case own:
		os.Exit(m.Run())
	case copies:
		if err := errors.Join(letGoOfOthers(), os.Setenv(Env, own)); err != nil {
			fmt.Fprintln(os.Stderr, "let go of the mounts of others:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), Env+"="+copies)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run the tests in a mount namespace of their own:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// OfLoops are the mounts of filesystems on loop devices, those on top first.
func OfLoops() ([]mountpoint.Entry, error) {
	all, err := mountpoint.List()
	slices.Reverse(all)
	return slices.DeleteFunc(all, func(m mountpoint.Entry) bool { return !strings.HasPrefix(m.Source, "/dev/loop") || m.Path == "/" }), err
}

// letGoOfOthers takes the copies away that a new namespace has of the mounts of loop devices. Theirs stay.
func letGoOfOthers() error {
	mounts, err := OfLoops()
	for _, m := range mounts {
		if e := unix.Unmount(m.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m.Path, e))
		}
	}
	return err
}
