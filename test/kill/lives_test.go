package kill

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth.io/berth/test/instance"
)

// life is one way to live: what was before, how berth up is started, and the steps.
type life struct {
	name string
	// args are given to berth up.
	args func(s *script) []string
	// wrap is a command that runs berth up.
	wrap []string
	// past happens before, and nothing is killed in it but what it kills itself.
	past func(s *script) error
	// first is a kill point to die at before the one in question: what only a crash leaves is met by the next start.
	first string
	steps func(s *script) []step
	// live, if any, is how it is lived, where that is not with berth up.
	live func(t *testing.T, l life, points []string, record string) (missed []string)
}

// lives in the order in which a boundary is looked for: the first that crosses it (see home) is the one to kill.
var lives = []life{
	{name: "whole", steps: (*script).wholeLife},
	{name: "odd", steps: (*script).oddLife},
	{name: "offline", steps: (*script).offlineLife},
	{name: "reboot", past: (*script).reboot, steps: (*script).wholeLife},
	{name: "staged note", first: "backend-block/note-staged:after", steps: (*script).wholeLife},
	{name: "half grown", first: "pool/extend-volume:before", steps: (*script).wholeLife},
	{name: "half given back", first: "pool/inflate-ballast:after", steps: (*script).wholeLife},
	{name: "raised limit", past: (*script).raiseLimit, steps: (*script).wholeLife},
	{name: "strange loop", past: (*script).strangeLoop, steps: (*script).wholeLife},
	{name: "copied pool", past: (*script).copyPool, steps: (*script).wholeLife},
	{name: "long journal", past: (*script).fillJournal, steps: (*script).wholeLife},
	{name: "device", args: (*script).poolDevice, steps: (*script).wholeLife},
	{name: "cannot grow", wrap: withoutSysResource, steps: (*script).cannotGrowLife},
	{name: "snapshots", steps: (*script).snapshotLife},
	{name: "frozen", first: "backend-block/freeze:after", steps: (*script).snapshotLife},
	{name: "named", args: (*script).withPlugin, steps: (*script).namedLife},
	{name: "foreign", steps: (*script).foreignLife},
	{name: "discovery", args: (*script).withDiscovery, steps: (*script).discoveryLife},
	{name: "flexvolume", steps: (*script).flexLife},
	{name: "flexvolume of the node", args: (*script).attachOnNode, steps: (*script).flexLife},
	{name: "try", live: liveTry},
	{name: "try killed", live: liveTry, first: "try/delete:before"},
	{name: "half made device", args: (*script).poolDevice, first: "pool/make-device-filesystem:after", steps: (*script).wholeLife},
}

// home names the life of the boundaries that the whole life does not cross.
var home = map[string]string{
	"backend-block/drop-stale-staged":   "staged note",
	"backend-block/forget-freeze":       "snapshots",
	"backend-block/freeze":              "snapshots",
	"backend-block/grow-unmounted":      "cannot grow",
	"backend-block/modify-queue":        "snapshots",
	"backend-block/note-freeze":         "snapshots",
	"backend-block/repair":              "reboot",
	"backend-block/reset-queue":         "snapshots",
	"backend-block/thaw":                "snapshots",
	"claim/claim-capacity":              "flexvolume",
	"claim/claim-migrated-to":           "odd",
	"claim/claim-phase":                 "odd",
	"claim/default-class":               "odd",
	"claim/expand-in-tree":              "flexvolume",
	"claim/name-resizer":                "odd",
	"claim/protect-attributes-class":    "odd",
	"claim/protect-claim":               "odd",
	"claim/protect-volume":              "odd",
	"claim/unbind-volume":               "odd",
	"claim/unmark-resized-volume":       "flexvolume",
	"claim/unprotect-attributes-class":  "odd",
	"claim/volume-capacity":             "flexvolume",
	"claim/volume-finalizer":            "odd",
	"csi/apply-fs-group":                "foreign",
	"discovery/adopt-volume":            "discovery",
	"discovery/create-volume":           "discovery",
	"discovery/delete-volume":           "discovery",
	"discovery/discard":                 "discovery",
	"discovery/lock-disk":               "discovery",
	"discovery/mark-disk":               "discovery",
	"discovery/overwrite":               "discovery",
	"discovery/remove":                  "discovery",
	"discovery/remove-taint":            "discovery",
	"discovery/report-disk":             "discovery",
	"discovery/restore-root":            "discovery",
	"discovery/run-cleaner":             "discovery",
	"discovery/sync-device":             "discovery",
	"discovery/sync-emptied":            "discovery",
	"discovery/unlock-disk":             "discovery",
	"discovery/zero":                    "discovery",
	"docker/clear-root":                 "named",
	"driver/forget-inline":              "snapshots",
	"driver/note-inline":                "snapshots",
	"flexvolume/apply-fs-group":         "flexvolume",
	"flexvolume/attach":                 "flexvolume",
	"flexvolume/bind":                   "flexvolume",
	"flexvolume/detach":                 "flexvolume",
	"flexvolume/expand-fs":              "flexvolume",
	"flexvolume/expand-volume":          "flexvolume",
	"flexvolume/forget-attached":        "flexvolume",
	"flexvolume/forget-published":       "flexvolume",
	"flexvolume/forget-staged":          "flexvolume",
	"flexvolume/make-global-dir":        "flexvolume",
	"flexvolume/make-plugin-dir":        "flexvolume",
	"flexvolume/make-target":            "flexvolume",
	"flexvolume/mount":                  "flexvolume",
	"flexvolume/mount-device":           "flexvolume",
	"flexvolume/note-attached":          "flexvolume",
	"flexvolume/note-published":         "flexvolume",
	"flexvolume/note-staged":            "flexvolume",
	"flexvolume/remove-global-dir":      "flexvolume",
	"flexvolume/remove-target":          "flexvolume",
	"flexvolume/unmount":                "flexvolume",
	"flexvolume/unmount-device":         "flexvolume",
	"flexvolume/unmount-plain":          "flexvolume",
	"flexvolume/wait-for-attach":        "flexvolume",
	"mount/unmount":                     "offline",
	"node/delete-stale-csinode":         "odd",
	"node/renew-lease":                  "offline",
	"node/unready-stale-pod":            "reboot",
	"node/write-node":                   "odd",
	"pool/allocate-growth":              "raised limit",
	"pool/claim-device":                 "device",
	"pool/approach-snapshot":            "snapshots",
	"pool/copy-snapshot":                "snapshots",
	"pool/describe-snapshot":            "snapshots",
	"pool/detach-deleted":               "strange loop",
	"pool/extend-image":                 "raised limit",
	"pool/fill-hole":                    "copied pool",
	"pool/finish-extending-volume":      "half grown",
	"pool/forget-crashed-freeze":        "frozen",
	"pool/give-up-snapshot":             "snapshots",
	"pool/grow-device-filesystem":       "device",
	"pool/grow-filesystem":              "raised limit",
	"pool/grow-loop-device":             "raised limit",
	"pool/make-device-filesystem":       "device",
	"pool/make-snapshot":                "snapshots",
	"pool/name-snapshot":                "snapshots",
	"pool/punch-held":                   "half given back",
	"pool/remove-snapshot":              "snapshots",
	"pool/remove-unfinished-snapshot":   "frozen",
	"pool/settle-device":                "half made device",
	"pool/settle-new-device":            "device",
	"pool/teardown-detach-volume":       "offline",
	"pool/teardown-unmount-volume":      "offline",
	"pool/thaw-after-crash":             "frozen",
	"pool/unname-snapshot":              "snapshots",
	"provision/create-group-snapshot":   "snapshots",
	"provision/create-snapshot":         "snapshots",
	"provision/delete-group-snapshot":   "snapshots",
	"provision/delete-snapshot":         "snapshots",
	"provision/modify-volume":           "snapshots",
	"provision/release-snapshot-source": "snapshots",
	"provision/report-attributes":       "snapshots",
	"provision/update-snapshot":         "snapshots",
	"rcu/expedite":                      "snapshots",
	"rcu/expedite-no-more":              "snapshots",
	"rcu/recover":                       "frozen",
	"retention/create-group-snapshot":   "snapshots",
	"retention/create-snapshot":         "snapshots",
	"retention/delete-group-snapshot":   "snapshots",
	"retention/delete-snapshot":         "snapshots",
	"retention/write-status":            "snapshots",
	"schedule/report-unschedulable":     "odd",
	"snapshotmetadata/republish":        "frozen",
	"trace/remove-segment":              "long journal",
	"try/create":                        "try",
	"try/delete":                        "try",
	"try/detach-loop":                   "try killed",
	"try/down":                          "try",
	"try/make-work":                     "try",
	"try/mount-memory":                  "try",
	"try/own-namespaces":                "try",
	"try/remove-work":                   "try",
	"try/rpc":                           "try",
	"try/save-junit":                    "try",
	"try/unmount":                       "try",
	"try/update":                        "try",
	"volume/add-caller":                 "named",
	"volume/bind":                       "named",
	"volume/create-claim":               "named",
	"volume/create-class":               "named",
	"volume/create-holder":              "named",
	"volume/create-namespace":           "named",
	"volume/create-snapshot":            "named",
	"volume/delete-claim":               "named",
	"volume/delete-holder":              "named",
	"volume/drop-caller":                "named",
	"volume/make-mount-point":           "named",
	"volume/remove-record":              "named",
	"volume/replace-class":              "named",
	"volume/resize-claim":               "named",
	"volume/unbind":                     "named",
	"volume/write-record":               "named",
}

func lifeOf(boundary string) life {
	for _, l := range lives {
		if l.name == home[boundary] {
			return l
		}
	}
	return lives[0]
}

// offlineLife is killed from outside in the middle; `berth down` cleans up with no API and no driver.
func (s *script) offlineLife() []step {
	killed := false
	return []step{
		{"the manifests are applied", func() error { return s.apply(small, "32Mi") }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"it is killed and taken down", func() error {
			if !killed {
				if err := s.bindElsewhere(); err != nil {
					return err
				}
				if err := s.in.Kill(); err != nil {
					return err
				}
				killed, s.past = true, true
			}
			if err := s.down(); err != nil {
				return err
			}
			return s.in.Settled(func(w instance.World) error { return w.Empty() })
		}},
		{"the pod is Ready again", s.podReady},
		{"the data is there", s.read},
		{"claims and pod are deleted", s.deleteAll},
		{"nothing is left", s.nothingLeft},
	}
}

// bindElsewhere shows a volume outside the data directory, as a user does who wants to look at it.
func (s *script) bindElsewhere() error {
	file, err := s.file()
	if err != nil {
		return err
	}
	return unix.Mount(filepath.Dir(file), filepath.Join(s.host, "elsewhere"), "", unix.MS_BIND, "")
}

// reboot leaves what a machine that lost its power finds: files, and nothing in the kernel.
func (s *script) reboot() error {
	err := s.goThrough([]step{
		{"(before) the manifests are applied", func() error { return s.apply(small, "32Mi") }},
		{"(before) the pod is Ready", s.podReady},
		{"(before) data is written and fsynced", s.write},
	})
	if err != nil {
		return err
	}
	if err := s.in.Kill(); err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.in.Dir))
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- { // the pool's own keeps until its volumes' devices are gone
		_ = unix.Unmount(mounts[i].Mountpoint, unix.UMOUNT_NOFOLLOW)
	}
	if err := s.markErrors(); err != nil {
		return err
	}
	return s.in.Settled(func(w instance.World) error {
		for _, l := range w.Loops {
			_ = exec.Command("losetup", "--detach", "/dev/"+strings.Fields(l)[0]).Run()
		}
		for _, m := range w.Mounts {
			_ = unix.Unmount(m, unix.UMOUNT_NOFOLLOW)
		}
		return w.Empty()
	})
}

// markErrors sets the mark of errors in the ext4 filesystems of the volumes, as the kernel does when it finds one.
func (s *script) markErrors() error {
	disks, err := filepath.Glob(filepath.Join(s.in.Dir, "pools", "default", "volumes", "*", "disk"))
	if err != nil {
		return err
	}
	marked := 0
	for _, disk := range disks {
		// debugfs keeps the superblock's checksum right; on what is not ext4 it fails.
		out, _ := exec.Command("debugfs", "-w", "-R", "set_super_value state 2", disk).CombinedOutput()
		if !strings.Contains(string(out), "Bad magic number") {
			marked++
		}
	}
	if marked == 0 {
		return fmt.Errorf("no ext4 among %q", disks)
	}
	return nil
}

// raiseLimit leaves a pool that was made with a smaller limit.
func (s *script) raiseLimit() error {
	args := s.in.Args
	s.in.Args = append(slices.Clone(args), "--pool-size", "1Gi") // the last one counts
	err := s.once()
	s.in.Args = args
	return err
}

// strangeLoop leaves a loop device of a volume that is gone.
func (s *script) strangeLoop() error {
	if err := s.alive(); err != nil {
		return err
	}
	if err := s.in.Kill(); err != nil {
		return err
	}
	disk := filepath.Join(s.in.Dir, "pools", "default", "volumes", "gone", "disk")
	if err := os.MkdirAll(filepath.Dir(disk), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command("losetup", "--find", disk).CombinedOutput(); err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	return os.RemoveAll(filepath.Dir(disk))
}

// once starts and stops an instance.
func (s *script) once() error {
	if err := s.alive(); err != nil {
		return err
	}
	return s.down()
}

// copyPool leaves the pool's file as a copy leaves it that keeps only what is not zero.
func (s *script) copyPool() error {
	if err := s.once(); err != nil {
		return err
	}
	image := filepath.Join(s.in.Dir, "pools", "default.img")
	for _, args := range [][]string{{"cp", "--sparse=always", image, image + ".copy"}, {"mv", image + ".copy", image}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", args, err, out)
		}
	}
	return nil
}

// fillJournal leaves as many segments as there may be, the last of them full.
func (s *script) fillJournal() error {
	if err := s.once(); err != nil {
		return err
	}
	dir := filepath.Join(s.in.Dir, "journal")
	for i := range 9 {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("journey-%08d.jsonl", i+1)), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		// Sparse is enough: what is no entry is skipped.
		if err := errors.Join(f.Truncate(8<<20), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// poolDevice gives the pool a device instead of a file.
func (s *script) poolDevice() []string { return []string{"--pool-device", s.pool} }
