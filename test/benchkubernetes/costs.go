package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// costs are what does not depend on who else uses the machine: processor time by process, requests of all clients by verb and kind, and
// flushes of the pool's disk.
type costs struct {
	cpu      map[string]time.Duration
	requests map[string]int
	flushes  int
}

// costs up to now; those since then are what sub leaves.
func (c *cluster) costs(ctx context.Context, node *process, ps ...*process) (costs, error) {
	now := costs{cpu: map[string]time.Duration{}}
	spent, err := processorTime(c.api.PID())
	if err != nil {
		return now, err
	}
	now.cpu["API server with etcd and upstream's controllers"] = spent
	for _, p := range ps {
		if now.cpu[p.name], err = processorTime(p.cmd.Process.Pid); err != nil {
			return now, err
		}
	}
	text, err := c.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return now, fmt.Errorf("the API server's metrics: %w", err)
	}
	if now.requests, err = requestsOf(text); err != nil {
		return now, err
	}
	if node != nil {
		now.flushes, err = poolFlushes(node.cmd.Process.Pid)
	}
	return now, err
}

func (c costs) sub(before costs) costs {
	left := costs{cpu: map[string]time.Duration{}, requests: map[string]int{}, flushes: c.flushes - before.flushes}
	for name, spent := range c.cpu {
		left.cpu[name] = spent - before.cpu[name]
	}
	for what, n := range c.requests {
		if n -= before.requests[what]; n > 0 {
			left.requests[what] = n
		}
	}
	return left
}

// per is what one of n cost.
func (c costs) per(n int) string {
	var parts []string
	for _, name := range sorted(c.cpu) {
		parts = append(parts, fmt.Sprintf("%s %.1f ms", name, c.cpu[name].Seconds()*1000/float64(n)))
	}
	writes := 0
	var some []string
	for _, what := range sorted(c.requests) {
		verb, _, _ := strings.Cut(what, " ")
		if slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, verb) {
			writes += c.requests[what]
		}
		if each := float64(c.requests[what]) / float64(n); each >= 0.05 {
			some = append(some, fmt.Sprintf("%s %.1f", what, each))
		}
	}
	return fmt.Sprintf("%s; %.1f writes (%s); %.2f flushes of the pool's disk", strings.Join(parts, ", "), float64(writes)/float64(n), strings.Join(some, ", "), float64(c.flushes)/float64(n))
}

func sorted[V any](m map[string]V) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// processorTime of a process and of its children that have ended (proc_pid_stat(5), fields 14 to 17, in ticks of 10 ms).
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

func parseStat(stat string) (time.Duration, error) {
	_, rest, ok := strings.Cut(stat[max(0, strings.LastIndexByte(stat, ')')):], " ") // the name may have spaces and brackets
	f := strings.Fields(rest)
	if !ok || len(f) < 15 {
		return 0, fmt.Errorf("%q is not as proc_pid_stat(5) says", stat)
	}
	var ticks int64
	for _, field := range f[11:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

var requestTotal = regexp.MustCompile(`^apiserver_request_total\{(.*)\} (\S+)$`)

// requestsOf reads how many requests the API server has answered, by verb and kind, from its metrics.
func requestsOf(metrics []byte) (map[string]int, error) {
	all := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(metrics))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := requestTotal.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, err
		}
		kind := label(m[1], "resource")
		if sub := label(m[1], "subresource"); sub != "" {
			kind += "/" + sub
		}
		all[label(m[1], "verb")+" "+kind] += int(n)
	}
	return all, lines.Err()
}

func label(labels, name string) string {
	_, rest, _ := strings.Cut(","+labels, ","+name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// poolFlushes is how often the disk under the pool of a node process was flushed: field 16 of the loop device's statistics
// (Documentation/block/stat.rst).
func poolFlushes(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasSuffix(f[4], "/node/pools/default") {
			continue
		}
		device, err := filepath.EvalSymlinks("/sys/dev/block/" + f[2])
		if err != nil {
			return 0, err
		}
		stat, err := os.ReadFile(filepath.Join(device, "stat"))
		if err != nil {
			return 0, err
		}
		if f := strings.Fields(string(stat)); len(f) > 15 {
			return strconv.Atoi(f[15])
		}
		return 0, fmt.Errorf("%s does not count flushes", device)
	}
	return 0, fmt.Errorf("process %d has no pool mounted: %w", pid, unix.ENOENT)
}
