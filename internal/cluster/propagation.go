package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// propagates makes sure that mounts which are made in this container reach the node: a volume that is mounted here alone looks mounted to
// the kubelet's question, and its pod writes to the node's root disk.
func (o *NodeOptions) propagates() error {
	if !inPod() {
		return nil // on the host itself
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	dirs := map[string]string{"--kubelet-dir": o.KubeletDir}
	if !o.WithoutBlock {
		dirs["--data-dir"] = o.DataDir
	}
	for flag, dir := range dirs {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		if !sharedAt(string(table), dir) {
			return fmt.Errorf("%s %s is not on a mount whose mounts reach the node: its volumeMount needs mountPropagation: Bidirectional, and the container to be privileged", flag, dir)
		}
	}
	return nil
}

func inPod() bool {
	_, is := os.LookupEnv("KUBERNETES_SERVICE_HOST")
	return is
}

// sharedAt says whether the mount that dir is on is shared. table is as in proc_pid_mountinfo(5).
func sharedAt(table, dir string) bool {
	longest, shared := -1, false
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 7 {
			continue
		}
		at := unescape(fields[4])
		if at != "/" && at != dir && !strings.HasPrefix(dir, at+"/") || len(at) < longest {
			continue
		}
		longest, shared = len(at), false // of two mounts at one place the later is on top
		for _, tag := range fields[6:] {
			if tag == "-" {
				break
			}
			shared = shared || strings.HasPrefix(tag, "shared:")
		}
	}
	return shared
}

// unescape undoes what the kernel does to spaces and the like in paths.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
