package docker

import (
	"os"
	"path/filepath"

	"berth.io/berth/internal/boundary"
)

// lostFound is what mkfs.ext4 leaves in a new filesystem. e2fsck makes it again when it needs it.
const lostFound = "lost+found"

// clearRoot makes a new volume look empty: engines copy an image's files to a volume only when nothing is in it, and
// databases refuse a directory in which something is.
func clearRoot(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(2)
	if err != nil || len(names) != 1 || names[0] != lostFound {
		return nil // empty, or in use
	}
	// Only while nothing is in it.
	return boundary.Do("docker/clear-root", func() error { return os.Remove(filepath.Join(path, lostFound)) })
}
