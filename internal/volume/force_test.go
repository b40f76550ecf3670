package volume

import (
	"strings"
	"testing"
	"time"
)

// A container that mounts while --force looks, or has the path and has not started yet, is not forgotten.
func TestForceDoesNotForgetWhoMountsInThatMoment(t *testing.T) {
	n := newNode(t)
	n.service.records = recordsIn(t.TempDir())
	n.create(t, "data")
	force := func() error {
		_, err := n.service.UnmountVolume(t.Context(), ns, "data", true)
		return err
	}

	longAgo := func() {
		for id := range n.service.mounting.volumes[ns+"/data"].engines {
			n.service.mounting.volumes[ns+"/data"].engines[id] = time.Now().Add(-time.Hour)
		}
	}

	// It has the path, and its container is being started.
	if _, err := n.service.Hold(t.Context(), ns, "data", engine("a")); err != nil {
		t.Fatal(err)
	}
	if err := force(); err == nil || !strings.Contains(err.Error(), "its container may be starting") {
		t.Errorf("while a container starts: %v", err)
	}
	if got := n.callers(t, "data"); len(got) != 1 {
		t.Fatalf("callers %v", got)
	}

	// It was killed long ago, and another one mounts while the force goes on.
	longAgo()
	end, err := n.service.mounting.force(ns+"/data", "data")
	if err != nil {
		t.Fatal(err)
	}
	mounted := make(chan error)
	go func() {
		_, err := n.service.Hold(t.Context(), ns, "data", engine("b"))
		mounted <- err
	}()
	select {
	case err := <-mounted:
		t.Fatalf("mounted while all callers are being forgotten: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	end()
	if err := <-mounted; err != nil {
		t.Fatal(err)
	}
	if err := force(); err == nil {
		t.Error("forgot the one that came")
	}

	// A mount that is under way.
	done, err := n.service.mounting.begin(t.Context(), ns+"/data")
	if err != nil {
		t.Fatal(err)
	}
	if err := force(); err == nil || !strings.Contains(err.Error(), "at this moment") {
		t.Errorf("while it is being mounted: %v", err)
	}
	done("")

	// Those that a killed engine left are forgotten still, and one that unmounts by itself is no reason to wait.
	longAgo()
	if err := force(); err != nil {
		t.Error(err)
	}
	if _, err := n.service.Hold(t.Context(), ns, "data", engine("c")); err != nil {
		t.Fatal(err)
	}
	if err := n.service.Release(t.Context(), ns, "data", engine("c")); err != nil {
		t.Fatal(err)
	}
	if err := force(); err != nil {
		t.Error(err)
	}
	if len(n.service.mounting.volumes) != 0 {
		t.Errorf("remembered for ever: %v", n.service.mounting.volumes)
	}
}
