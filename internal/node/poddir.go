package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin/intree/removal"
)

// removePodDir removes pods/<uid>. Where volumes were, only empty directories are removed: a file there means that an
// unmount did not happen or that somebody wrote below a mount point, and it is kept and reported. The rest (marks of
// plugins) is the node's own and goes whole, except through a mount point.
func removePodDir(pods string, uid types.UID) error {
	name := string(uid)
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return fmt.Errorf("pod directory: %q is not a UID", name)
	}
	dir := filepath.Join(pods, name)
	for _, volumes := range []string{"volumes", "volumeDevices", "volume-subpaths"} {
		if err := removal.EmptyDirs(filepath.Join(dir, volumes)); err != nil {
			return podDirError(err)
		}
	}
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return podDirError(removal.All(dir))
}

func podDirError(err error) error {
	switch {
	case errors.Is(err, removal.ErrMounted):
		return fmt.Errorf("pod directory is kept: %w", err)
	case errors.Is(err, removal.ErrNotEmpty):
		return fmt.Errorf("pod directory is kept: a file stands where a volume was mounted: %w", err)
	}
	return err
}
