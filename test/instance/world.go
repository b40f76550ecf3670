package instance

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// World is what an instance has in the kernel, seen from outside, without any of Berth's own code.
type World struct {
	Mounts []string // mount points below the data directory
	Loops  []string // "loopN <backing file>" with a backing file below it, also deleted ones
}

// World looks at the kernel.
func (in *Instance) World() (World, error) {
	var w World
	dir, err := filepath.EvalSymlinks(in.Dir)
	if err != nil {
		return w, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return w, err
	}
	for _, m := range mounts {
		w.Mounts = append(w.Mounts, m.Mountpoint)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return w, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // detached in this moment
		}
		if backing := strings.TrimSpace(string(b)); strings.HasPrefix(backing, dir+"/") {
			w.Loops = append(w.Loops, strings.Split(f, "/")[3]+" "+backing)
		}
	}
	sort.Strings(w.Mounts)
	sort.Strings(w.Loops)
	return w, nil
}

// Settled waits until the world is right, 5 s at most, and says what is wrong with it. The kernel lets a loop device go
// when the last one has closed it, and whoever lists this machine's block devices has it open for a moment.
func (in *Instance) Settled(right func(World) error) error {
	for tries := 0; ; tries++ {
		w, err := in.World()
		if err == nil {
			err = right(w)
		}
		if err == nil || tries == 100 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// VolumeLoops are the loop devices of volumes, without the pool's own.
func (w World) VolumeLoops() []string {
	var v []string
	for _, l := range w.Loops {
		if strings.Contains(l, "/volumes/") {
			v = append(v, l)
		}
	}
	return v
}

// PodMounts are the mounts in pods' directories and of staged volumes.
func (w World) PodMounts() []string {
	var v []string
	for _, m := range w.Mounts {
		if strings.Contains(m, "/pods/") || strings.Contains(m, "/plugins/") {
			v = append(v, m)
		}
	}
	return v
}

// Empty is an error that lists what is left.
func (w World) Empty() error {
	if len(w.Mounts)+len(w.Loops) == 0 {
		return nil
	}
	return fmt.Errorf("left behind: mounts %q, loop devices %q", w.Mounts, w.Loops)
}
