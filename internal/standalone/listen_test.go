package standalone

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Instances that start for the first time in the same moment: between the choice of a port and the API server that listens there lie
// seconds, and nobody else chooses it in them.
func TestFirstStartsAtOnceChooseDifferentPorts(t *testing.T) {
	const instances = 8
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	var mu sync.Mutex
	chosen := map[string]bool{}
	var all sync.WaitGroup
	for range instances {
		all.Go(func() {
			addr, release, err := chooseListen("", kubeconfig)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(release)
			mu.Lock()
			defer mu.Unlock()
			if chosen[addr] {
				t.Errorf("%s is chosen twice", addr)
			}
			chosen[addr] = true
		})
	}
	all.Wait()
}

// A port that was asked for, or that another instance has chosen and not yet taken, is not given to a second one; once it is
// released it is.
func TestAChosenPortIsRefusedUntilItIsReleased(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, release, err := chooseListen(asked, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := chooseListen(asked, ""); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), asked) {
		t.Errorf("asked for by two: %v", err)
	}
	release()
	_, release, err = chooseListen(asked, "")
	if err != nil {
		t.Fatal(err)
	}
	release()
}
