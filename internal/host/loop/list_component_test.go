//go:build component

package loop

import (
	"testing"
)

// Another program lets go of its devices while the machine's are listed: the list is without them, and no error.
func TestListWhileDevicesGo(t *testing.T) {
	table, f, id := backed(t)
	going, gone := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(gone)
		for {
			select {
			case <-going:
				return
			default:
			}
			dev, err := table.Attach(f, Options{})
			if err == nil {
				dev.Close()
				err = table.Detach(id)
			}
			if err != nil {
				gone <- err
				return
			}
		}
	}()
	for range 600 {
		if _, err := List(); err != nil {
			t.Error(err)
			break
		}
	}
	close(going)
	if err := <-gone; err != nil {
		t.Error(err)
	}
}
