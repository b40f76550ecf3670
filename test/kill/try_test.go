package kill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"berth.io/berth/internal/boundary"
)

// liveTry runs `berth try` on a small driver until it completes: its keeper or its bench dies at each of points, and the
// next run takes away what a killed keeper leaves. Then nothing may be left of any of them.
func liveTry(t *testing.T, l life, points []string, record string) (missed []string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bkt-") // short, as the sockets of an instance are below it
	if err != nil {
		t.Fatal(err)
	}
	driver := filepath.Join(dir, "driver")
	if out, err := exec.Command("go", "build", "-o", driver, "berth.io/berth/test/try/driver").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+time.Duration(len(points))*time.Minute)
	defer cancel()
	arms, only := [][]string{slices.Clone(points)}, "idempotency,mount,expand-online,block,fault-node"
	if l.first != "" {
		only = "block" // where a driver has a loop device when it is first struck
		arms = [][]string{{l.first}, slices.Clone(points)}
	}
	for {
		began := time.Now()
		// The others, too: the keeper crosses them in the run in which the bench dies at the first.
		armed := slices.Concat(arms...)
		out, err := tryOnce(ctx, dir, driver, only, armed, record)
		died := false
		for i, set := range arms {
			for _, p := range set {
				if strings.Contains(out, "boundary: killed at "+p+"\n") {
					t.Logf("%6.1fs  killed at %s", time.Since(began).Seconds(), p)
					arms[i], died = slices.DeleteFunc(arms[i], func(x string) bool { return x == p }), true
				}
			}
		}
		if died {
			continue
		}
		t.Logf("%6.1fs  lived", time.Since(began).Seconds())
		if err != nil {
			t.Errorf("the run did not complete: %v\n%s", err, out)
		}
		break
	}
	if err := leftOfTry(dir); err != nil {
		t.Errorf("after berth try: %v", err)
		t.Logf("kept for a look: %s", dir)
	} else {
		os.RemoveAll(dir)
	}
	return arms[len(arms)-1]
}

// tryOnce tries the driver in some steps.
func tryOnce(ctx context.Context, dir, driver, only string, points []string, record string) (string, error) {
	c := exec.CommandContext(ctx, filepath.Join(os.Getenv("BERTH_BIN"), "berth"), "try",
		"--driver", driver+" --endpoint={{endpoint}} --nodeid={{node}} --state={{dir}}",
		"--only", only, "--junit", filepath.Join(dir, "report.xml"))
	var out bytes.Buffer
	c.Env = append(os.Environ(), "TMPDIR="+dir, boundary.EnvKillAt+"="+strings.Join(points, ","), boundary.EnvRecord+"="+record)
	c.Stdout, c.Stderr = &out, &out
	c.WaitDelay = 20 * time.Second // its children have the pipe, too
	err := c.Run()
	return out.String(), err
}

// leftOfTry looks for directories, mounts, loop devices and processes of runs below dir.
func leftOfTry(dir string) error {
	look := func() (left []string) {
		found, _ := filepath.Glob(filepath.Join(dir, "berth-try-*"))
		left = append(left, found...)
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return []string{err.Error()}
		}
		for _, m := range mounts {
			left = append(left, "mount "+m.Mountpoint)
		}
		backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, f := range backing {
			if b, _ := os.ReadFile(f); bytes.HasPrefix(b, []byte(dir+"/")) {
				left = append(left, "loop device of "+strings.TrimSpace(string(b)))
			}
		}
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range lines {
			if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(dir+"/")) {
				left = append(left, fmt.Sprintf("process %s %q", strings.Split(f, "/")[2], b))
			}
		}
		return left
	}
	for tries := 0; ; tries++ {
		left := look()
		if len(left) == 0 {
			return nil
		}
		if tries == 100 { // the kernel lets a loop device go a moment after its last user
			return errors.New("left behind: " + strings.Join(left, ", "))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
