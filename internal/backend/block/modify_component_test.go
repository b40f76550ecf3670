//go:build component

package block

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/loop"
)

// queueFile reads a setting of the volume's device.
func queueFile(t *testing.T, s *served, id, name string) string {
	t.Helper()
	dev, ok, err := s.openLoop(id)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	defer dev.Close()
	line, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev.Name()), "queue", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(line))
}

// What is modified is in force at once, and again after the next stage; what is not named stays, and the defaults can be had again.
func TestModify(t *testing.T) {
	s := serve(t, 2<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	s.mounted(v)
	if dev, _, err := s.openLoop(v.ID); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(loop.ResetReadAhead(dev), dev.Close()); err != nil { // whoever had the device before may have left his
		t.Fatal(err)
	}
	ahead := queueFile(t, s, v.ID, "read_ahead_kb")
	if err := s.Modify(t.Context(), v.ID, map[string]string{"readAheadKiB": "64", "scheduler": "mq-deadline"}); err != nil {
		t.Fatal(err)
	}
	set := func(when string) {
		t.Helper()
		if got := queueFile(t, s, v.ID, "read_ahead_kb"); got != "64" {
			t.Errorf("%s: read ahead %s", when, got)
		}
		if got := queueFile(t, s, v.ID, "scheduler"); !strings.Contains(got, "[mq-deadline]") {
			t.Errorf("%s: scheduler %s", when, got)
		}
	}
	set("at once")
	s.unmount(v)
	s.stop()
	s.start(2 << 30)
	s.mounted(v)
	set("after a restart")
	if v, err := s.Get(t.Context(), v.ID); err != nil || v.Mutable["scheduler"] != "mq-deadline" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := s.Modify(t.Context(), v.ID, map[string]string{"scheduler": "none"}); err != nil {
		t.Fatal(err)
	}
	if got := queueFile(t, s, v.ID, "read_ahead_kb"); got != "64" {
		t.Errorf("not named: read ahead %s", got)
	}
	if err := s.Modify(t.Context(), v.ID, map[string]string{"readAheadKiB": "0"}); err != nil {
		t.Fatal(err)
	}
	if got := queueFile(t, s, v.ID, "scheduler"); !strings.Contains(got, "[none]") {
		t.Errorf("default: scheduler %s", got)
	}
	if got := queueFile(t, s, v.ID, "read_ahead_kb"); got != ahead {
		t.Errorf("default: read ahead %s, it was %s", got, ahead)
	}
	s.unmount(v)
	other := s.make(backend.CreateRequest{Name: "o", RequiredBytes: 32 * mib, FSType: "ext4", Mutable: map[string]string{"scheduler": "kyber"}})
	s.mounted(other)
	if got := queueFile(t, s, other.ID, "scheduler"); !strings.Contains(got, "[kyber]") {
		t.Errorf("from its creation: scheduler %s", got)
	}
	s.unmount(other)

	for _, kib := range []string{"64", "8192"} {
		reader := s.make(backend.CreateRequest{Name: "a" + kib, RequiredBytes: 32 * mib, FSType: "ext4", Mutable: map[string]string{"readAheadKiB": kib}})
		s.mounted(reader)
		dev, _, err := s.openLoop(reader.ID)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(dev.Name())
		dev.Close()
		s.unmount(reader)
		left, err := os.ReadFile(filepath.Join("/sys/block", name, "queue", "read_ahead_kb"))
		if got := strings.TrimSpace(string(left)); err != nil || got == kib {
			t.Errorf("left to the next user of %s: read ahead %s, %v", name, got, err)
		}
	}
	for name, bad := range map[string]map[string]string{
		"a limit":           {"writeIOPS": "100"},
		"an unknown one":    {"replicas": "3"},
		"not a number":      {"readAheadKiB": "banana"},
		"too many":          {"readAheadKiB": "99999999999"},
		"no such scheduler": {"scheduler": "../../etc"},
		"one of two":        {"scheduler": "none", "bandwidth": "1"},
	} {
		err := s.Modify(t.Context(), v.ID, bad)
		if !errors.Is(err, backend.ErrInvalid) || !errors.Is(s.CheckMutable(bad), backend.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
}

// What somebody else has mounted at a volume's places is not unmounted.
func TestSomebodyElsesMount(t *testing.T) {
	for _, fsType := range []string{"ext4", "btrfs"} {
		s := serve(t, 4<<30)
		v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 200 * mib, FSType: fsType})
		target := filepath.Join(s.dir, "target")
		s.mounted(v)
		if err := s.Publish(t.Context(), backend.PublishRequest{ID: v.ID, StagingPath: s.at(v.ID), Target: target}); err != nil {
			t.Fatal(err)
		}
		foreign := filepath.Join(s.dir, "foreign")
		if err := errors.Join(os.Mkdir(foreign, 0o700), unix.Mount("somebody", foreign, "tmpfs", 0, "size=1m")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(foreign, 0) })
		write(t, filepath.Join(foreign, "x"), "somebody's")
		for _, err := range []error{s.Unpublish(t.Context(), v.ID, foreign), s.Unstage(t.Context(), "vol-unknown", foreign), s.Unpublish(t.Context(), "vol-unknown", foreign)} {
			if !errors.Is(err, backend.ErrInUse) {
				t.Errorf("%v", err)
			}
		}
		wantContent(t, filepath.Join(foreign, "x"), "somebody's")
		if err := s.Unpublish(t.Context(), v.ID, target); err != nil {
			t.Error(err)
		}
		if err := s.Unstage(t.Context(), v.ID, foreign); !errors.Is(err, backend.ErrInUse) {
			t.Errorf("%v", err)
		}
		s.unmount(v)
		_ = unix.Unmount(foreign, 0)
	}
}

// What is wrong with a volume is said.
func TestProblems(t *testing.T) {
	s := serve(t, 2<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	at := s.mounted(v)
	if got, _ := s.Get(t.Context(), v.ID); got.Problem != "" {
		t.Errorf("healthy: %q", got.Problem)
	}
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil { // as ext4 does at an error
		t.Fatal(err)
	}
	problem := func(want string) {
		t.Helper()
		got, err := s.Get(t.Context(), v.ID)
		if err != nil || !strings.Contains(got.Problem, want) {
			t.Errorf("%q, %v; want %q", got.Problem, err, want)
		}
	}
	problem("no more writes")
	if st, err := s.Stats(t.Context(), v.ID, at); err != nil || st.Problem == "" {
		t.Errorf("%+v, %v", st, err)
	}
	s.unmount(v)
	problem("")
	if err := os.Truncate(s.o.Pool.Disk(v.ID), 5*mib); err != nil {
		t.Fatal(err)
	}
	problem("cut short")
	if err := os.Remove(s.o.Pool.Disk(v.ID)); err != nil {
		t.Fatal(err)
	}
	problem("is gone")
	if err := s.Delete(t.Context(), v.ID); err != nil {
		t.Errorf("deleting what is left: %v", err)
	}
}

// Two modifications of one volume at once, of different parameters: both are in force.
func TestModificationsAtOnce(t *testing.T) {
	s := serve(t, 2<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	s.formats.Wait()
	h, err := s.holds.Acquire(t.Context(), v.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	for name, value := range map[string]string{"readAheadKiB": "64", "scheduler": "mq-deadline"} {
		go func() { done <- s.Modify(t.Context(), v.ID, map[string]string{name: value}) }()
	}
	h.Release()
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get(t.Context(), v.ID); err != nil || v.Mutable["readAheadKiB"] != "64" || v.Mutable["scheduler"] != "mq-deadline" {
		t.Errorf("%v, %v", v.Mutable, err)
	}
}
