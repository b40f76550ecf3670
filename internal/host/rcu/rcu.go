// Package rcu shortens the kernel's RCU grace periods for a moment.
//
// To freeze a filesystem the kernel waits for three of them, one after another (freeze_super, sb_wait_write, percpu_down_write: fs/super.c),
// and writers stand still from the second on. On an idle machine each takes 3 to 4 ticks of the clock: 40 ms together at 250 ticks a second, and
// less than 1 ms when they are expedited, whose price are interrupts to the other processors. The switch is the whole machine's,
// /sys/kernel/rcu_expedited, so it is on for the freeze alone. A kernel that was told rcu_normal (real-time ones are) heeds no such wish.
package rcu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// Switch is the machine's switch. Several who want it on at the same time share one Switch.
type Switch struct {
	// Note is a symbolic link that stands for as long as the switch may be on by our doing; Recover looks for it.
	Note string
	// path of the switch; the kernel's when empty.
	path string

	mu    sync.Mutex
	users int
	ours  bool
}

const kernelSwitch = "/sys/kernel/rcu_expedited"

// bootID tells one boot from another: a switch is off after each.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// On makes grace periods short until Off. An error says why they are as long as ever: this process may not, or has no such switch. One that
// somebody else has switched on stays theirs. Off is to be called in any case.
func (s *Switch) On() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users++; s.users > 1 {
		return nil
	}
	now, err := os.ReadFile(s.file())
	if err != nil || strings.TrimSpace(string(now)) != "0" {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	return boundary.Do("rcu/expedite", func() error {
		if err := os.Symlink(boot, s.Note); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := set(s.file(), "1"); err != nil {
			return errors.Join(err, os.Remove(s.Note))
		}
		s.ours = true
		return nil
	})
}

// Off ends what On began, when nobody wants it any more.
func (s *Switch) Off() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 || !s.ours {
		return nil
	}
	s.ours = false
	return boundary.Do("rcu/expedite-no-more", func() error {
		return errors.Join(set(s.file(), "0"), os.Remove(s.Note))
	})
}

// Recover switches off what a killed process left on. A note from before the last boot is only removed. Where this process may not switch,
// the note stays for one that may.
func (s *Switch) Recover() error {
	noted, err := os.Readlink(s.Note)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	err = boundary.Do("rcu/recover", func() error {
		if noted == boot {
			if err := set(s.file(), "0"); err != nil {
				return err
			}
		}
		return os.Remove(s.Note)
	})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

func (s *Switch) file() string {
	if s.path != "" {
		return s.path
	}
	return kernelSwitch
}

// set writes to a file that is there.
//
// boundary: held by the caller.
func set(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s to %s: %w", value, path, err)
	}
	return nil
}
