//go:build kubernetes

package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cluster is one node of Kubernetes, run by cluster.sh.
type cluster struct {
	// state is the directory of the programs and of the cluster, the same in its namespaces ($STATE in state.sh).
	state string

	cmd      *exec.Cmd
	lifeline io.Closer // the cluster ends with it, and so with us
	out      io.Reader
}

// run is what lives as long as the cluster; its var/lib, var/log, run and tmp are those of the node.
func (c *cluster) run(elem ...string) string {
	return filepath.Join(append([]string{c.state, "run"}, elem...)...)
}

// plugins is the node's directory of FlexVolume drivers, seen from outside.
func (c *cluster) plugins() string { return c.run("var/lib/kubelet/volumeplugins") }

func (c *cluster) script(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "./"+name, args...)
	cmd.Env = append(os.Environ(), "BERTH_TEST_KUBERNETES="+c.state)
	return cmd
}

// inside is a command in the cluster's namespaces, with kubectl set up.
func (c *cluster) inside(ctx context.Context, args ...string) *exec.Cmd {
	return c.script(ctx, "cluster.sh", append([]string{"in"}, args...)...)
}

// output runs a command and returns its standard output; the error has the rest.
func output(cmd *exec.Cmd) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// start brings the cluster up, and says how far it is.
func (c *cluster) start() error {
	c.cmd = c.script(context.Background(), "cluster.sh", "run")
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	c.lifeline, c.out = in, out
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Println("cluster:", lines.Text())
		if strings.HasPrefix(lines.Text(), "ready") {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("the cluster did not become ready; its logs are in %s", filepath.Join(c.state, "log")), c.end())
}

// end ends a cluster that start began.
func (c *cluster) end() error {
	c.lifeline.Close()
	_, _ = io.Copy(io.Discard, c.out)
	return c.cmd.Wait()
}

// nothingLeft says what a cluster that has ended left behind.
func (c *cluster) nothingLeft() error {
	if _, err := os.Stat(c.run()); !os.IsNotExist(err) {
		return fmt.Errorf("the cluster left %s: %v", c.run(), err)
	}
	name, err := output(c.script(context.Background(), "cluster.sh", "cgroup"))
	if err != nil {
		return err
	}
	name = strings.TrimSpace(name)
	for _, pattern := range []string{name, "*/" + name} { // of cgroup v2, of v1
		if left, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern)); err != nil || len(left) > 0 {
			return fmt.Errorf("the cluster left cgroups: %v %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), " "+c.state+"/") {
		return fmt.Errorf("the cluster left mounts:\n%s", mounts)
	}
	return nil
}

// A cluster whose keeper is killed dies with it, and `down` removes what the kernel does not: the run directory, cgroups with
// what was a pod's in them, and loop devices.
func TestKilledClusterLeavesNothing(t *testing.T) {
	second := &cluster{state: shared.state + "-killed"}
	if err := os.MkdirAll(second.state, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(second.state) })
	for _, programs := range []string{"bin", "images"} {
		err := os.Symlink(filepath.Join(shared.state, programs), filepath.Join(second.state, programs))
		if err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if err := second.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.lifeline.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pod := second.inside(ctx, "kubectl", "apply", "-f", "-")
	pod.Stdin = strings.NewReader(podYAML("left", "emptyDir: {}"))
	device := ""
	for _, cmd := range []*exec.Cmd{
		pod,
		second.inside(ctx, "kubectl", "wait", "--for=condition=Ready", "--timeout=60s", "pod/left"),
		second.inside(ctx, "truncate", "--size=1M", "/var/lib/disk"),
		second.inside(ctx, "losetup", "--find", "--show", "/var/lib/disk"),
	} {
		out, err := output(cmd)
		if err != nil {
			t.Fatal(err)
		}
		device = strings.TrimSpace(out)
	}
	// Counts what is attached to a device and detached from it; the path that the kernel shows is another without the namespace.
	sequence := filepath.Join("/sys/block", filepath.Base(device), "diskseq")
	attached, err := os.ReadFile(sequence)
	if err != nil {
		t.Fatal(err)
	}

	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = second.cmd.Wait() // killed
	if _, err := output(second.script(ctx, "cluster.sh", "down")); err != nil {
		t.Error(err)
	}
	if err := second.nothingLeft(); err != nil {
		t.Error(err)
	}
	if now, err := os.ReadFile(sequence); err != nil || bytes.Equal(now, attached) {
		t.Errorf("%s is still attached: %v", device, err)
	}
	if err := second.inside(ctx, "true").Run(); err == nil {
		t.Error("the cluster still runs")
	}
}
