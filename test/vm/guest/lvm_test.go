//go:build vmguest

package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// disk is the one that test/vm gives the machine.
const disk = "/dev/vda"

// noUdev: nothing but LVM itself makes device names here.
const noUdev = "devices{obtain_device_list_from_udev=0}activation{udev_sync=0 udev_rules=0}"

// The group's name has a dash: device-mapper doubles it.
var group = sync.OnceValue(func() error {
	return script(`
		modprobe -a dm_mod dm_thin_pool dm_snapshot xfs btrfs ext4
		mkdir -p /run/lvm /run/lock/lvm
		lvm pvcreate -q --config '` + noUdev + `' ` + disk + `
		lvm vgcreate -q --config '` + noUdev + `' kube-vg ` + disk + `
		lvm lvcreate -q --config '` + noUdev + `' -L 1500M --thinpool pool kube-vg`)
})

func lvmOptions(name string, pairs ...string) map[string]string {
	return with(map[string]string{"volumegroup": "kube-vg", "volumeID": name}, pairs...)
}

func deviceDir(volume string) string {
	return filepath.Join(kubelet, "plugins/kubernetes.io/flexvolume/berth/lvm/mounts", volume)
}

func lvs(t *testing.T, field, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "lvm", "lvs", "--config", noUdev, "--noheadings", "--units", "b", "--nosuffix", "-o", field, "kube-vg/"+name))
}

func remove(t *testing.T, name string) {
	t.Helper()
	run(t, "lvm", "lvremove", "-q", "-y", "--config", noUdev, "kube-vg/"+name)
}

// Every call-out of the driver in its order, each twice, for each kind of volume.
func TestLVMLife(t *testing.T) {
	started(t, group)
	for name, c := range map[string]struct{ pool, fsType, want string }{
		"linear": {"", "", "ext4"}, "thin ext4": {"pool", "ext4", "ext4"}, "thin xfs": {"pool", "xfs", "xfs"}, "thin btrfs": {"pool", "btrfs", "btrfs"},
	} {
		t.Run(name, func(t *testing.T) {
			id := strings.ReplaceAll(name, " ", "-")
			pairs := []string{"size", "320m", "kubernetes.io/fsType", c.fsType}
			if c.pool != "" {
				pairs = append(pairs, "thinpool", c.pool)
			}
			o := options(lvmOptions(id, pairs...))
			if c := twice(t, "lvm", "init").Capabilities; !c["attach"] || !c["fsGroup"] || !c["requiresFSResize"] {
				t.Errorf("capabilities %v", c)
			}
			volume := twice(t, "lvm", "getvolumename", o).VolumeName
			if want := "kube--vg-" + strings.ReplaceAll(id, "-", "--"); volume != want {
				t.Errorf("volume name %q, want %q", volume, want)
			}
			global, dir, second := deviceDir(volume), podDir(t, "lvm"), ""
			attached := twice(t, "lvm", "attach", o, "node").Device
			if attached != device(id) {
				t.Errorf("device %q", attached)
			}
			if a := twice(t, "lvm", "isattached", o, "node"); a.Attached {
				t.Error("attached before it exists")
			}
			began := twice(t, "lvm", "waitforattach", attached, o)
			if began.Device != attached {
				t.Errorf("device %q, want %q", began.Device, attached)
			}
			t.Logf("waitforattach with the device there: %s", succeeds(t, "lvm", "waitforattach", attached, o).took)
			if a := twice(t, "lvm", "isattached", o, "node"); !a.Attached {
				t.Error("not attached")
			}
			succeeds(t, "lvm", "unmountdevice", global) // never mounted
			succeeds(t, "lvm", "unmount", dir)
			twice(t, "lvm", "mountdevice", global, attached, o)
			isMounted(t, global, device(id), c.want, "rw")
			if tags := lvs(t, "lv_tags", id); tags != "" {
				t.Errorf("tags %q after the format", tags)
			}
			twice(t, "lvm", "mount", dir, o)
			isMounted(t, dir, device(id), c.want, "rw")
			write(t, filepath.Join(dir, "file"), "kept")
			holds(t, filepath.Join(global, "file"), "kept")

			second = podDir(t, "lvm") + "-ro"
			twice(t, "lvm", "mount", second, options(lvmOptions(id, append(pairs, "kubernetes.io/readwrite", "ro")...)))
			isMounted(t, second, device(id), c.want, "ro")
			isMounted(t, dir, device(id), c.want, "rw")

			const larger = 448 << 20
			for range 2 {
				if a := succeeds(t, "lvm", "expandvolume", o, global, itoa(larger), itoa(320<<20)); a.VolumeNewSize != larger {
					t.Errorf("size %d, want %d", a.VolumeNewSize, larger)
				}
			}
			before := free(t, dir)
			twice(t, "lvm", "expandfs", o, attached, global, itoa(larger), itoa(320<<20))
			if after := free(t, dir); after < before+(100<<20) {
				t.Errorf("%d bytes before, %d after growing by 128 MiB", before, after)
			}
			holds(t, filepath.Join(dir, "file"), "kept")
			const largest = 512 << 20 // as kube-controller-manager and a kubelet do it: without expandvolume
			before = free(t, dir)
			twice(t, "lvm", "expandfs", o, attached, global, itoa(largest), itoa(larger))
			if after := free(t, dir); after < before+(50<<20) {
				t.Errorf("%d bytes before, %d after growing by 64 MiB at once", before, after)
			}

			twice(t, "lvm", "unmount", second)
			twice(t, "lvm", "unmount", dir)
			notMounted(t, dir)
			twice(t, "lvm", "unmountdevice", global)
			notMounted(t, global)
			twice(t, "lvm", "detach", volume, "node")

			// It comes back with its data, also where the host has no mountdevice, and after it was deactivated.
			run(t, "lvm", "lvchange", "-an", "--config", noUdev, "kube-vg/"+id)
			twice(t, "lvm", "mount", dir, o)
			holds(t, filepath.Join(dir, "file"), "kept")
			twice(t, "lvm", "unmount", dir)
			// An older host names the device.
			succeeds(t, "lvm", "mountdevice", global, attached, o)
			twice(t, "lvm", "unmountdevice", attached)
			notMounted(t, global)
			remove(t, id)
			if a := twice(t, "lvm", "isattached", o, "node"); a.Attached {
				t.Error("attached after it was removed")
			}
		})
	}
}

// device is where the volume's device is, which the mount has as its source.
func device(id string) string { return "/dev/kube-vg/" + id }

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks) * st.Bsize
}

// Where the device is there, waitforattach looks at /dev and /sys alone: it takes about as long as init, which here is some 30 times as
// long as on a processor that is not emulated.
func TestLVMWaitIsQuick(t *testing.T) {
	started(t, group)
	o := options(lvmOptions("quick", "size", "16m"))
	succeeds(t, "lvm", "waitforattach", "", o)
	defer remove(t, "quick")
	median := func(args ...string) time.Duration {
		var took []time.Duration
		for range 15 {
			took = append(took, succeeds(t, "lvm", args...).took)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	start, wait := median("init"), median("waitforattach", device("quick"), o)
	t.Logf("init %s, waitforattach %s (medians of 15)", start, wait)
	if wait > 3*start {
		t.Errorf("waitforattach takes %s, init %s", wait, start)
	}
}

// What a device holds stays: other filesystems, bytes that nobody knows, and what the machine itself has mounted.
func TestLVMRefuses(t *testing.T) {
	started(t, group)
	run(t, "lvm", "lvcreate", "-q", "-y", "--config", noUdev, "-V", "400M", "--thinpool", "pool", "-n", "other", "kube-vg")
	defer remove(t, "other")
	global := deviceDir("kube--vg-other")
	path := device("other")
	mount := func(pairs ...string) []string {
		return []string{"mountdevice", global, path, options(lvmOptions("other", pairs...))}
	}

	fails(t, "is empty, and is asked for read-only", "lvm", mount("kubernetes.io/readwrite", "ro")...)

	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("somebody's database"), 70000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	fails(t, "it holds unknown data", "lvm", mount()...)
	got := make([]byte, 19)
	f, err = os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(got, 70000); err != nil || string(got) != "somebody's database" {
		t.Errorf("it was overwritten: %q %v", got, err)
	}
	f.Close()

	run(t, "mkfs.xfs", "-q", "-f", path)
	fails(t, "it holds xfs, and the volume asks for ext4", "lvm", mount("kubernetes.io/fsType", "ext4")...)
	notMounted(t, global)
	succeeds(t, "lvm", mount("kubernetes.io/fsType", "")...)
	isMounted(t, global, device("other"), "xfs")
	succeeds(t, "lvm", "unmountdevice", global)

	host := t.TempDir()
	run(t, "mount", path, host)
	fails(t, "it is left to this machine", "lvm", mount("kubernetes.io/fsType", "")...)
	run(t, "umount", host)

	for name, c := range map[string]struct {
		options map[string]string
		words   string
	}{
		"no such volume":    {lvmOptions("missing"), "make it with lvcreate, or give the option size"},
		"no such group":     {lvmOptions("x", "volumegroup", "nowhere", "size", "100m"), "not on this machine"},
		"a pool":            {lvmOptions("pool"), "pool"},
		"no room":           {lvmOptions("large", "size", "10t"), "lvm"},
		"another's device":  {lvmOptions("other"), "is not /dev/kube-vg/other"},
		"a pool not there":  {lvmOptions("thin", "size", "10m", "thinpool", "nopool"), "lvm"},
		"dev/mapper's name": {lvmOptions("kube--vg-other", "volumegroup", "mapper"), "not on this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			from := ""
			if name == "another's device" {
				from = disk
			}
			a := fails(t, c.words, "lvm", "waitforattach", from, options(c.options))
			t.Logf("after %s: %s", a.took.Round(time.Millisecond), a.Message)
		})
	}
}

// From nothing to a mounted volume, killed at both sides of everything that it does.
func TestLVMKilled(t *testing.T) {
	started(t, group)
	dir := podDir(t, "lvm")
	for _, pool := range []string{"", "pool"} {
		o := options(lvmOptions("killed", "size", "304m", "thinpool", pool, "kubernetes.io/fsType", "xfs"))
		fresh := func(t *testing.T) {
			succeeds(t, "lvm", "unmount", dir)
			_ = script("lvm lvremove -q -y --config '" + noUdev + "' kube-vg/killed")
		}
		fresh(t)
		survives(t, fresh, func(t *testing.T) {
			isMounted(t, dir, device("killed"), "xfs", "rw")
			write(t, filepath.Join(dir, "file"), "kept")
			if tags := lvs(t, "lv_tags", "killed"); tags != "" {
				t.Errorf("tags %q", tags)
			}
		}, "lvm", "mount", dir, o)
		succeeds(t, "lvm", "unmount", dir)
		inactive := func(t *testing.T) {
			succeeds(t, "lvm", "unmount", dir)
			run(t, "lvm", "lvchange", "-an", "--config", noUdev, "kube-vg/killed")
		}
		survives(t, inactive, func(t *testing.T) { holds(t, filepath.Join(dir, "file"), "kept") }, "lvm", "mount", dir, o)
		succeeds(t, "lvm", "unmount", dir)
		small := func(t *testing.T) { // the filesystem is that small still
			run(t, "lvm", "lvreduce", "-q", "-f", "-y", "--config", noUdev, "-L", "304M", "kube-vg/killed")
		}
		survives(t, func(t *testing.T) {
			if lvs(t, "lv_size", "killed") != itoa(304<<20) {
				small(t)
			}
		}, func(t *testing.T) {
			if got := lvs(t, "lv_size", "killed"); got != itoa(320<<20) {
				t.Errorf("size %s", got)
			}
		}, "lvm", "expandvolume", o, deviceDir("kube--vg-killed"), itoa(320<<20), itoa(304<<20))
		global := deviceDir("kube--vg-killed")
		succeeds(t, "lvm", "mountdevice", global, "", o)
		survives(t, func(t *testing.T) {}, func(t *testing.T) { holds(t, filepath.Join(global, "file"), "kept") },
			"lvm", "expandfs", o, "", global, itoa(320<<20), itoa(304<<20))
		succeeds(t, "lvm", "unmountdevice", global)
		remove(t, "killed")
	}
}

// A volume that somebody else has open, a virtual machine or a device on top: it is neither formatted, mounted nor grown, and the error says
// who it is. What has nothing mounted is unmounted without touching it.
func TestLVMOpenElsewhere(t *testing.T) {
	started(t, group)
	const id = "guest"
	o := options(lvmOptions(id, "size", "320m"))
	global, dir := deviceDir(id), podDir(t, "lvm")
	succeeds(t, "lvm", "waitforattach", device(id), o)
	for name, hold := range map[string]func(t *testing.T) (words string, release func()){
		"a process": func(t *testing.T) (string, func()) {
			cmd := exec.Command("sh", "-c", "exec 3<>"+device(id)+"; echo; exec sleep 1000")
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			return "(sleep)", func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		},
		"a loop device on top": func(t *testing.T) (string, func()) {
			run(t, "modprobe", "loop")
			loop := strings.TrimSpace(run(t, "losetup", "--find", "--show", device(id)))
			return loop, func() { run(t, "losetup", "--detach", loop) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			words, release := hold(t)
			released := sync.OnceFunc(release)
			defer released()
			fails(t, words, "lvm", "mountdevice", global, device(id), o)
			fails(t, words, "lvm", "mount", dir, o)
			fails(t, words, "lvm", "expandvolume", o, global, itoa(448<<20), itoa(320<<20))
			fails(t, words, "lvm", "expandfs", o, device(id), global, itoa(448<<20), itoa(320<<20))
			succeeds(t, "lvm", "unmountdevice", global)
			succeeds(t, "lvm", "unmount", dir)
			succeeds(t, "lvm", "unmountdevice", device(id))
			if size, tags := lvs(t, "lv_size", id), lvs(t, "lv_tags", id); size != itoa(320<<20) || tags != "berth.unformatted" {
				t.Errorf("size %s, tags %s", size, tags)
			}
			released()
		})
	}
	succeeds(t, "lvm", "mountdevice", global, device(id), o)
	isMounted(t, global, device(id), "ext4", "rw")
	succeeds(t, "lvm", "unmountdevice", global)
	remove(t, id)
}
