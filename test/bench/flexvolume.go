package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// flexvolumeRuns is how often each call-out is timed.
const flexvolumeRuns = 100

// flexvolume measures the FlexVolume drivers' program as a host calls it: a new process each time, from fork to its end.
func flexvolume(bin string, t *table) error {
	program, err := filepath.Abs(filepath.Join(bin, "berth-flexvolume"))
	if err != nil {
		return err
	}
	st, err := os.Stat(program)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "berth-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	t.row("berth", "size of berth-flexvolume, to reach: 7 MB", fmt.Sprintf("%.1f MB", float64(st.Size())/1e6))
	for _, c := range []struct {
		work, driver string
		args         []string
	}{
		{"FlexVolume init, to reach: p50 3.5 ms", "nfs", []string{"init"}},
		{"FlexVolume getvolumename", "lvm", []string{"getvolumename", `{"volumegroup":"vg","volumeID":"v","kubernetes.io/fsType":"ext4"}`}},
		{"FlexVolume waitforattach, nothing to wait for, to reach: p50 10 ms", "block", []string{"waitforattach", "", `{"volumeID":"v"}`}},
		{"FlexVolume unmount, nothing mounted", "cifs", []string{"unmount", filepath.Join(dir, "pods/u/volumes/berth~cifs/v")}},
	} {
		as := filepath.Join(dir, c.driver)
		if err := os.Symlink(program, as); err != nil {
			return err
		}
		var took []time.Duration
		for range flexvolumeRuns {
			began := time.Now()
			if out, err := exec.Command(as, c.args...).Output(); err != nil {
				return fmt.Errorf("%s %s: %w: %s", c.driver, c.args[0], err, out)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		ms := func(q float64) float64 { return took[int(q*float64(len(took)-1))].Seconds() * 1000 }
		t.row("berth", fmt.Sprintf("%s, %d runs", c.work, flexvolumeRuns), fmt.Sprintf("p50 %.2f ms, p99 %.2f ms (min %.2f)", ms(0.5), ms(0.99), ms(0)))
	}
	return nil
}
