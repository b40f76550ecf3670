package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// volumeData is vol_data.json: what is needed to take a volume away with neither the API nor memory. It is a flat map
// of strings with upstream's keys, so that a kubelet that takes over the directory reads it too.
type volumeData struct {
	SpecVolID           string `json:"specVolID,omitempty"`
	VolumeHandle        string `json:"volumeHandle,omitempty"`
	DriverName          string `json:"driverName,omitempty"`
	NodeName            string `json:"nodeName,omitempty"`
	AttachmentID        string `json:"attachmentID,omitempty"`
	VolumeLifecycleMode string `json:"volumeLifecycleMode,omitempty"`
	SELinuxMountContext string `json:"seLinuxMountContext,omitempty"`
}

func (p *Plugin) volumeData(v *plugin.Volume) volumeData {
	driver, handle := p.Driver(v), handleOf(v)
	return volumeData{
		SpecVolID:           v.SpecName(),
		VolumeHandle:        handle,
		DriverName:          driver,
		NodeName:            p.node,
		AttachmentID:        attachmentName(handle, driver, p.node),
		VolumeLifecycleMode: string(lifecycle(v)),
	}
}

// save writes the file into dir, whole or not at all: a torn file would leave a mount that nobody can undo. It is as
// durable as the mount that it tells of: a killed process loses neither, and what takes the kernel down takes the mount
// along. So the bytes are written out before the name is there, and nobody waits for the filesystem's journal, which
// on the disk of etcd and of the pool is the longest wait of a mount.
func (d volumeData) save(dir string) error {
	if old, err := loadVolumeData(dir); err == nil && old == d {
		return nil
	}
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode %s: %w", volumeDataFile, err)
	}
	return boundary.Do("csi/save-volume-data", func() error {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		f, err := os.CreateTemp(dir, "."+volumeDataFile+"-*")
		if err != nil {
			return err
		}
		_, err = f.Write(append(data, '\n'))
		err = errors.Join(err, writeOut(f), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), filepath.Join(dir, volumeDataFile))
		}
		if err != nil {
			_ = os.Remove(f.Name())
			return fmt.Errorf("save %s: %w", filepath.Join(dir, volumeDataFile), err)
		}
		return nil
	})
}

// writeOut waits until the file's bytes are with the disk; the entry in its directory, made after this, can never lead to
// less.
func writeOut(f *os.File) error {
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if err != nil { // not every filesystem can
		return f.Sync()
	}
	return nil
}

// loadVolumeData reads the file in dir; os.ErrNotExist when there is none.
func loadVolumeData(dir string) (volumeData, error) {
	file := filepath.Join(dir, volumeDataFile)
	data, err := os.ReadFile(file)
	if err != nil {
		return volumeData{}, fmt.Errorf("read %s: %w", file, err)
	}
	d, err := parseVolumeData(data)
	if err != nil {
		return volumeData{}, fmt.Errorf("read %s: %w", file, err)
	}
	return d, nil
}

func parseVolumeData(data []byte) (volumeData, error) {
	var d volumeData
	if err := json.Unmarshal(data, &d); err != nil {
		return volumeData{}, err
	}
	if d.DriverName == "" || d.VolumeHandle == "" {
		return volumeData{}, errors.New("driverName or volumeHandle is missing")
	}
	return d, nil
}

// removeMountDir removes an unmounted directory (or block file) and the volume data beside it. rmdir and unlink refuse a mount point
// (EBUSY), so nothing is ever removed through a mount. The data goes last but for its directory: without it nobody could
// finish what a crash interrupts here.
func removeMountDir(path string) error {
	return boundary.Do("csi/remove-mount-dir", func() error {
		dir := filepath.Dir(path)
		temps, err := unfinishedData(dir)
		if err != nil {
			return err
		}
		for _, f := range append([]string{path}, append(temps, filepath.Join(dir, volumeDataFile), dir)...) {
			if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove %s: %w", f, err)
			}
		}
		return nil
	})
}

// unfinishedData lists what a crash in save left in dir.
func unfinishedData(dir string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+volumeDataFile+"-") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}
