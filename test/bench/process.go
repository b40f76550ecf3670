package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what the kernel accounts to a process.
type usage struct {
	cpu time.Duration
	rss int64 // bytes, the program's own pages on disk among them
}

// clockTick is USER_HZ, 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

func usageOf(pid int) (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// pid (comm) state … utime and stime are fields 14 and 15.
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	for _, i := range []int{11, 12} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(n) * clockTick
	}
	pages, err := strconv.ParseInt(f[21], 10, 64)
	u.rss = pages * int64(os.Getpagesize())
	return u, err
}

// apiServerOf finds the child of berth up.
func apiServerOf(pid int) (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("process %d has no child", pid)
}

// idle measures memory and CPU of an instance that nobody asks for anything, after it has settled.
func (s *subject) idle(ctx context.Context, d time.Duration, t *table) error {
	fmt.Fprintf(os.Stderr, "%s: idle for %s\n", s.name, d)
	api, err := apiServerOf(s.in.PID())
	if err != nil {
		return err
	}
	settle := 20 * time.Second
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return ctx.Err()
	}
	var before, after [2]usage
	for i, pid := range []int{s.in.PID(), api} {
		if before[i], err = usageOf(pid); err != nil {
			return err
		}
	}
	time.Sleep(d)
	for i, pid := range []int{s.in.PID(), api} {
		if after[i], err = usageOf(pid); err != nil {
			return err
		}
	}
	percent := func(i int) float64 { return 100 * (after[i].cpu - before[i].cpu).Seconds() / d.Seconds() }
	t.row(s.name, "memory: berth-apiserver fresh / everything else idle", fmt.Sprintf("%d MB / %d MB", after[1].rss>>20, after[0].rss>>20))
	t.row(s.name, fmt.Sprintf("CPU idle over %s: all / Berth's own part", d), fmt.Sprintf("%.2f %% / %.2f %% of a core", percent(0)+percent(1), percent(0)))
	return nil
}
