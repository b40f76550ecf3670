package why

import (
	"fmt"
	"strings"
	"time"
)

// FlexVolumeDriver is a directory in which a FlexVolume driver is, or should be.
type FlexVolumeDriver struct {
	// Name is VENDOR/DRIVER, or the directory's name where that is none.
	Name   string `json:"name"`
	Path   string `json:"path,omitempty"`
	Loaded bool   `json:"loaded"`
	// Capabilities of a loaded driver.
	Attach           bool `json:"attach"`
	FSGroup          bool `json:"fsGroup"`
	SELinuxRelabel   bool `json:"selinuxRelabel"`
	RequiresFSResize bool `json:"requiresFSResize"`
	SupportsMetrics  bool `json:"supportsMetrics"`
	// Unsupported are the call-outs that it answered "Not supported" to.
	Unsupported []string `json:"unsupported,omitempty"`
	// Volumes that it serves: PersistentVolumes, and inline volumes of pods that are not finished.
	Volumes int `json:"volumes"`
	// Problem is why it is not loaded.
	Problem string    `json:"problem,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// line tells the capabilities that matter to a person.
func (d *FlexVolumeDriver) line() string {
	if !d.Loaded {
		return "FlexVolume"
	}
	can := []string{"attach no"}
	if d.Attach {
		can[0] = "attach yes"
	}
	if !d.FSGroup {
		can = append(can, "fsGroup no")
	}
	if d.SupportsMetrics {
		can = append(can, "metrics")
	}
	if len(d.Unsupported) > 0 {
		can = append(can, "without "+strings.Join(d.Unsupported, ", "))
	}
	return fmt.Sprintf("FlexVolume, %s, %s", count(d.Volumes, "volume"), strings.Join(can, ", "))
}

// flexVolume counts a volume of the driver.
func (w *surveyor) flexVolume(name string) {
	for i := range w.FlexVolumes {
		if w.FlexVolumes[i].Name == name {
			w.FlexVolumes[i].Volumes++
		}
	}
}
