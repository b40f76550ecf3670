//go:build slow

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.io/berth/test/flexdriver"
)

// Upstream's slow fixture as it is: two minutes, in mountdevice (whose deadline is 10 minutes) and in mount (3 minutes), with the deadlines
// that a user has. Each is called once, is neither killed nor called again meanwhile, and its pod runs afterwards.
func TestMountsThatTakeTwoMinutes(t *testing.T) {
	const slow = 2 * time.Minute
	f := flexOn(tell(t))
	attached, plain := f.install("slow/att", "attachable"), f.install("slow/plain", "dummy")
	f.must(os.WriteFile(filepath.Join(attached, "seconds"), []byte("120"), 0o644))
	f.must(os.WriteFile(filepath.Join(plain, "before-mount"), []byte("sleep 120\n"), 0o644))
	began := time.Now()
	f.apply(f.pv("slow/att", "device", ""))
	f.apply(f.pv("slow/plain", "plain", ""))
	defer f.kubectl("delete", "pv", f.ns+"-device", f.ns+"-plain", "--wait=false")
	for _, pod := range []string{"device", "plain"} {
		f.within(slow+time.Minute-time.Since(began), "pod "+pod+" ready after two minutes", func() (bool, string) {
			out := f.kubectl("get", "pod", pod, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
			return out == "True", out
		})
		if took := time.Since(began); took < slow {
			t.Errorf("%s is ready after %s: the driver took less than it was told to", pod, took)
		}
		if b, err := os.ReadFile(filepath.Join(f.dataDir(pod), "index.html")); err != nil || string(b) != "Hello from flexvolume!\n" {
			t.Errorf("%s: %q, %v", pod, b, err)
		}
	}
	for state, verb := range map[string]string{attached: "mountdevice", plain: "mount"} {
		n := 0
		for _, v := range flexdriver.Verbs(state) {
			if v == verb {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s was called %d times: %v", verb, n, flexdriver.Verbs(state))
		}
	}
	events := f.kubectl("get", "events", "-o", "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}")
	if slices.ContainsFunc(strings.Split(events, "\n"), func(l string) bool {
		return strings.Contains(l, "gave no answer") || strings.HasPrefix(l, "FailedMount")
	}) {
		t.Errorf("events:\n%s", events)
	}
	f.removePod("device")
	f.removePod("plain")
	f.nothingOf("slow")
}
