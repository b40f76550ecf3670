package kill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/test/instance"
)

// script lives a life of volumes. Each step states what must come to be and is repeated until it is; when berth up dies
// in between, it is started again and the step goes on.
type script struct {
	in  *instance.Instance
	ctx context.Context
	// host is a directory of the machine's user, devices two block devices, pool a third, larger one.
	host    string
	devices [2]string
	pool    string
	client  kubernetes.Interface
	log     func(format string, args ...any)
	atEnd   func(func())
	// arms are sets of kill points: armed is the first, until each of it has struck.
	arms   [][]string
	record string   // the file of the crossings after that
	given  []string // that the running berth up was started with
	deaths int
	past   bool // the end of the process before belongs to the past

	// What was done once and must not be done again after a death.
	bared   [3]bool
	unready bool
	oldNode types.UID

	refused bool              // the group that cannot be of one instant was
	kept    map[string]string // of each schedule, the first snapshot that was seen
	foreign *exec.Cmd         // a third party's driver, which is not killed with berth up
}

// step is repeated until it returns nil: the state is reached.
type step struct {
	name string
	do   func() error
}

// newScript prepares the machine: it makes nothing below the data directory.
func newScript(t *testing.T, ctx context.Context, in *instance.Instance) *script {
	t.Helper()
	s := &script{in: in, ctx: ctx, host: in.Dir + "-host", log: t.Logf, atEnd: t.Cleanup}
	t.Cleanup(func() { os.RemoveAll(s.host) })
	for _, dir := range []string{"static", "local", "migrated", "lost", "elsewhere"} {
		if err := os.MkdirAll(filepath.Join(s.host, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range s.devices {
		s.devices[i] = newDevice(t, filepath.Join(s.host, fmt.Sprint("disk", i)), 64<<20)
	}
	s.pool = newDevice(t, filepath.Join(s.host, "pool"), 3<<30)
	return s
}

// newDevice is a loop device of the test's own.
func newDevice(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// goThrough reaches one state after the other.
func (s *script) goThrough(steps []step) error {
	for _, step := range steps {
		if err := s.until(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// until repeats a step for a minute; a death of berth up in between is followed by a new start and another minute.
func (s *script) until(name string, do func() error) error {
	began := time.Now()
	defer func() { s.log("%6.1fs  %s", time.Since(began).Seconds(), name) }()
	deadline, deaths := time.Now().Add(60*time.Second), s.deaths
	for {
		if s.deaths > deaths {
			deadline, deaths = time.Now().Add(60*time.Second), s.deaths
		}
		err := s.alive()
		if err == nil {
			err = do()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || s.ctx.Err() != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// alive starts berth up when it is not running, armed with the kill point whose turn it is.
func (s *script) alive() error {
	if s.in.Running() {
		return nil
	}
	if s.past {
		s.past = false
	} else if s.in.Ended() != nil {
		if err := s.died(s.in.Output()); err != nil {
			return fmt.Errorf("berth up ended by itself: %w", err)
		}
	}
	s.in.Env, s.given = s.armed(), nil
	if len(s.arms) > 0 {
		s.given = slices.Clone(s.arms[0])
	}
	if err := s.in.Start(s.ctx); err != nil {
		return err
	}
	var err error
	s.client, err = s.in.Client()
	return err
}

// died takes note of a death at a kill point that was armed; any other end is an error.
func (s *script) died(said string) error {
	if len(s.arms) > 0 {
		for i, p := range s.arms[0] {
			if !strings.Contains(said, "boundary: killed at "+p+"\n") {
				continue
			}
			s.log("        killed at %s", p)
			s.deaths++
			if s.arms[0] = slices.Delete(s.arms[0], i, i+1); len(s.arms[0]) == 0 {
				s.arms = s.arms[1:]
			}
			return nil
		}
	}
	// Where a command has died before: berth up still has the point.
	for _, p := range s.given {
		if strings.Contains(said, "boundary: killed at "+p+"\n") {
			s.log("        killed at %s, too", p)
			s.deaths++
			return nil
		}
	}
	return errors.New(said)
}

// command is a berth command that may die, too; its step is then repeated.
func (s *script) command(args ...string) (string, error) {
	s.in.CommandEnv = s.armed()
	out, err := s.in.Berth(s.ctx, args...)
	s.in.CommandEnv = nil
	if err != nil && strings.Contains(err.Error(), "boundary: killed at ") {
		if died := s.died(err.Error()); died != nil {
			return out, died
		}
	}
	return out, err
}

// armed is the environment of the next command.
func (s *script) armed() []string {
	switch {
	case len(s.arms) > 0:
		return []string{boundary.EnvKillAt + "=" + strings.Join(s.arms[0], ",")}
	case s.record != "":
		return []string{boundary.EnvRecord + "=" + s.record}
	}
	return nil
}

// down is `berth down`, which may die too, or see berth up die.
func (s *script) down() error {
	ctx := context.WithoutCancel(s.ctx)
	for {
		running := s.in.Running()
		s.in.CommandEnv = s.armed()
		err := s.in.Down(ctx)
		s.in.CommandEnv = nil
		if err == nil {
			return nil
		}
		said := err.Error()
		if running && !s.in.Running() {
			said += s.in.Output()
		}
		if died := s.died(said); died != nil {
			return died
		}
	}
}
