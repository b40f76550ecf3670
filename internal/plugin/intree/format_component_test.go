//go:build component

package intree

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/host/xfs"
	"berth.io/berth/internal/plugin"
)

// A mkfs that could not even start leaves no leave to format: the disk may be given to something else, whose data nobody
// here recognises.
func TestAFailedFormatIsNotGoneOnWithOverData(t *testing.T) {
	device, dir := loop(t, 64<<20), t.TempDir()
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	at := filepath.Join(dir, "mounts", "pv")
	if err := os.MkdirAll(at, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := FormatAndMount(t.Context(), "uid", device, at, "nosuchfs", nil); err == nil {
		t.Fatal("formatted")
	}
	data := []byte("data of a program that has its own format")
	if _, err := dev.WriteAt(data, 8192); err != nil {
		t.Fatal(err)
	}
	if err := FormatAndMount(t.Context(), "uid", device, at, "ext4", nil); err == nil {
		t.Error("formatted over data")
	}
	have := make([]byte, len(data))
	if _, err := dev.ReadAt(have, 8192); err != nil || string(have) != string(data) {
		t.Errorf("%q, %v", have, err)
	}
}

// A process dies between the mark and mkfs; what has become of the disk by the next start decides.
func TestAnInterruptedFormat(t *testing.T) {
	data := []byte("data of a program that has its own format")
	for name, c := range map[string]struct {
		// meanwhile is what happens to the disk, which the volume "pv" of that UID had begun to format.
		meanwhile func(t *testing.T, l *local, device string)
		uid       types.UID
		formatted bool
	}{
		"nothing": {nil, "one", true},
		"the volume was made anew under its name": {nil, "two", false},
		"another volume gave the disk to a pod": {func(t *testing.T, l *local, device string) {
			mode := v1.PersistentVolumeBlock
			raw := &v1.PersistentVolume{Spec: v1.PersistentVolumeSpec{VolumeMode: &mode}}
			raw.Name, raw.UID, raw.Spec.Local = "raw", "raw", &v1.LocalVolumeSource{Path: device}
			v := &plugin.Volume{Name: "raw", PV: raw, Pod: &v1.Pod{}}
			v.Pod.UID = "pod"
			if _, err := l.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
				t.Fatal(err)
			}
		}, "one", false},
	} {
		t.Run(name, func(t *testing.T) {
			device := loop(t, 64<<20)
			l := &local{Volumes: New(Options{DataDir: t.TempDir()})}
			at := l.globalDir("pv")
			if err := os.MkdirAll(at, 0o750); err != nil {
				t.Fatal(err)
			}
			if err := beginFormat(at, device, "one"); err != nil {
				t.Fatal(err)
			}
			if c.meanwhile != nil {
				c.meanwhile(t, l, device)
			}
			dev, err := os.OpenFile(device, os.O_RDWR|os.O_SYNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			if _, err := dev.WriteAt(data, 1<<20); err != nil {
				t.Fatal(err)
			}
			err = FormatAndMount(t.Context(), c.uid, device, at, "ext4", nil)
			if err == nil {
				t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
			}
			if (err == nil) != c.formatted {
				t.Errorf("formatted: %v, want %v", err, c.formatted)
			}
		})
	}
}

// A process dies within mkfs.xfs, which writes its superblock early: blkid recognises XFS, and no kernel mounts it.
func TestAnInterruptedFormatOfXFS(t *testing.T) {
	for name, c := range map[string]struct {
		unfinished bool
		uid        types.UID
		kept       bool // the filesystem that was there
		mounted    bool
	}{
		"mkfs was cut":                 {unfinished: true, uid: "one", mounted: true},
		"mkfs of another volume's was": {unfinished: true, uid: "two", kept: true},
		"mkfs had ended":               {uid: "one", kept: true, mounted: true},
	} {
		t.Run(name, func(t *testing.T) {
			device := loop(t, 320<<20)
			l := &local{Volumes: New(Options{DataDir: t.TempDir()})}
			at := l.globalDir("pv")
			if err := os.MkdirAll(at, 0o750); err != nil {
				t.Fatal(err)
			}
			if err := beginFormat(at, device, "one"); err != nil {
				t.Fatal(err)
			}
			if err := makeFilesystem(t.Context(), device, "xfs"); err != nil {
				t.Fatal(err)
			}
			dev, err := os.OpenFile(device, os.O_RDWR|os.O_SYNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			before := superblock(t, dev, c.unfinished)
			err = FormatAndMount(t.Context(), c.uid, device, at, "xfs", nil)
			if err == nil {
				t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
			}
			if (err == nil) != c.mounted {
				t.Errorf("mounted: %v, want %v", err, c.mounted)
			}
			now, err := xfs.ReadSuperblock(dev)
			if err != nil || (now.UUID == before.UUID) != c.kept {
				t.Errorf("UUID %x, before %x (%v); kept: want %v", now.UUID, before.UUID, err, c.kept)
			}
		})
	}
}

// superblock reads the one on dev, which it first marks as that of a mkfs that did not reach its end.
func superblock(t *testing.T, dev *os.File, unfinished bool) xfs.Superblock {
	t.Helper()
	if unfinished {
		const inProgress, checksum = 126, 224
		b := make([]byte, 512)
		if _, err := dev.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		b[inProgress] = 1
		clear(b[checksum : checksum+4])
		binary.LittleEndian.PutUint32(b[checksum:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		if _, err := dev.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	sb, err := xfs.ReadSuperblock(dev)
	if err != nil || sb.Unfinished != unfinished {
		t.Fatalf("%+v, %v", sb, err)
	}
	return sb
}

// mkfs that hangs ends with its deadline or its caller's, and a partition table is nobody's filesystem.
func TestFormatIsRefused(t *testing.T) {
	device, at := loop(t, 64<<20), filepath.Join(t.TempDir(), "mounts", "pv")
	if err := os.MkdirAll(at, 0o750); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := FormatAndMount(ctx, "uid", device, at, "ext4", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	dev, err := os.OpenFile(device, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	table := make([]byte, 512)
	copy(table[446:], "\x80\x00\x00\x00\x83\x00\x00\x00\x00\x08\x00\x00\x00\x80\x00\x00") // one partition, from sector 2048
	copy(table[510:], "\x55\xaa")
	if _, err := dev.WriteAt(table, 0); err != nil {
		t.Fatal(err)
	}
	if err := FormatAndMount(t.Context(), "uid", device, at, "ext4", nil); err == nil || !strings.Contains(err.Error(), "partition table") {
		t.Errorf("partitioned: %v", err)
	}
}
