package main

import (
	"fmt"
	"os"
	"time"
)

// syncsOfJourney is how many of the fsyncs between an accepted claim and its mounted volume wait for one another: the API's
// writes in a row, the volume's description and its file (counted with strace on a quiet instance).
const syncsOfJourney = 20

// disk measures what of a journey's time is this machine's disk, which nobody here can change: writes of 4 KiB, each synced,
// syncsOfJourney of them in a row.
func disk(runs int, t *table) error {
	if runs == 0 {
		return nil
	}
	fmt.Fprintln(os.Stderr, "disk: synced writes")
	f, err := os.CreateTemp("", "berth-bench-disk-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	var single, row []time.Duration
	for range runs {
		began := time.Now()
		for range syncsOfJourney {
			one := time.Now()
			if _, err := f.Write(block); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
			single = append(single, time.Since(one))
		}
		row = append(row, time.Since(began))
	}
	t.durations("the disk alone", "4 KiB written and synced", single)
	t.durations("the disk alone", fmt.Sprintf("%d of these in a row, as a journey has them, %d runs", syncsOfJourney, runs), row)
	return nil
}
