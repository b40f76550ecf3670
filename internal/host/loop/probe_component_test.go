//go:build component

package loop

import (
	"os"
	"testing"
	"time"
)

// A program that probes block devices has a device open at the moment in which it is detached: the detach succeeds as
// soon as the probe closes it. One that keeps it open is named.
func TestDetachOutlastsAProbe(t *testing.T) {
	table, f, id := backed(t)
	for _, c := range []struct {
		name string
		open time.Duration
		held bool
	}{{"a moment", 20 * time.Millisecond, false}, {"for good", 5 * time.Second, true}} {
		t.Run(c.name, func(t *testing.T) {
			dev, err := table.Attach(f, Options{})
			if err != nil {
				t.Fatal(err)
			}
			probe, err := os.Open(dev.Name())
			if err != nil {
				t.Fatal(err)
			}
			dev.Close()
			timer := time.AfterFunc(c.open, func() { probe.Close() })
			err = table.Detach(id)
			if (err != nil) != c.held {
				t.Errorf("detach: %v", err)
			}
			if timer.Stop() {
				probe.Close()
			}
			if dev, there, _ := table.Open(id); there {
				dev.Close()
				t.Error("the device is still attached after the last close")
			}
		})
	}
}
