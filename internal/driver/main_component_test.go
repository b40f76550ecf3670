//go:build component

package driver_test

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

// apart says that this process has a mount namespace of its own.
const apart = "BERTH_TEST_OWN_MOUNTS"

// TestMain runs the tests in a mount namespace of their own. A namespace that somebody else on this machine makes while they run
// would hold on to copies of their mounts, and so to their loop devices; and so does this one to others', until it lets go of the copies.
func TestMain(m *testing.M) {
	if os.Getenv(apart) != "" {
		if err := letGoOfOthers(); err != nil {
			fmt.Fprintln(os.Stderr, "let go of the mounts of others:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), apart+"=1")
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

// ofLoops are the mounts of filesystems on loop devices, those on top first.
func ofLoops() ([]mountpoint.Entry, error) {
	all, err := mountpoint.List()
	slices.Reverse(all)
	return slices.DeleteFunc(all, func(m mountpoint.Entry) bool { return !strings.HasPrefix(m.Source, "/dev/loop") || m.Path == "/" }), err
}

// letGoOfOthers takes the copies away that a new namespace has of the mounts of loop devices. Theirs stay.
func letGoOfOthers() error {
	mounts, err := ofLoops()
	for _, m := range mounts {
		if e := unix.Unmount(m.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m.Path, e))
		}
	}
	return err
}

// The namespace of the tests holds no loop device that is not theirs: here, one that is mounted outside.
func TestNothingOfOthersIsHeld(t *testing.T) {
	if theirs := os.Getenv("BERTH_TEST_THEIRS"); theirs != "" { // in the namespace of a run within this one
		mounts, err := ofLoops()
		if err != nil || len(mounts) > 0 {
			t.Errorf("held: %v, %v", mounts, err)
		}
		return
	}
	s := start(t, 2<<30) // mounted here
	if mounts, err := ofLoops(); err != nil || len(mounts) == 0 {
		t.Fatalf("no mount of %s: %v, %v", s.dir, mounts, err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestNothingOfOthersIsHeld$")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, apart+"=") }), "BERTH_TEST_THEIRS=yes")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
