package intree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin/intree/removal"
)

// file is one file of a written volume.
type file struct {
	data []byte
	mode os.FileMode
	// owner of the file when the pod's containers run as one user and the file is a credential.
	owner *int64
}

// payload is what a written volume shows: relative path to file.
type payload map[string]file

const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	stampFormat = "..2006_01_02_15_04_05."
)

// write makes dir show p, atomically: the files stand in a hidden directory with a time stamp, `..data` links to it,
// and each visible name links into `..data`; one rename of `..data` changes them all. A reader that watches `..data`
// sees the change, as with the kubelet's atomic writer, whose layout this is. A dir that already shows p is left
// alone. own sets owner and mode below dir before the change becomes visible.
//
// Any prefix of the steps may be followed by a crash: the next write takes away what it left.
func (p payload) write(dir string, own func(dir string) error) error {
	if err := p.validate(); err != nil {
		return err
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if current == "" || !p.shownIn(filepath.Join(dir, current)) {
		stamp, err := p.writeStamped(dir, own)
		if err != nil {
			return err
		}
		if err := swap(dir, stamp); err != nil {
			return err
		}
		current = stamp
	}
	return p.tidy(dir, current)
}

// writeStamped writes the files into a new hidden directory and returns its name.
func (p payload) writeStamped(dir string, own func(dir string) error) (string, error) {
	var stamp string
	err := boundary.Do("intree/write-payload", func() error {
		stamped, err := os.MkdirTemp(dir, time.Now().UTC().Format(stampFormat))
		if err != nil {
			return err
		}
		stamp = filepath.Base(stamped)
		if err := os.Chmod(stamped, 0o755); err != nil {
			return err
		}
		for name, f := range p {
			full := filepath.Join(stamped, name)
			if err := os.MkdirAll(filepath.Dir(full), 0o777); err != nil {
				return err
			}
			if err := os.WriteFile(full, f.data, 0o600); err != nil {
				return err
			}
			if f.owner != nil {
				if err := os.Lchown(full, int(*f.owner), -1); err != nil {
					return err
				}
			}
			if err := os.Chmod(full, f.mode); err != nil {
				return err
			}
		}
		return own(dir)
	})
	return stamp, err
}

// swap points `..data` at stamp.
func swap(dir, stamp string) error {
	next := filepath.Join(dir, newDataLink)
	return boundary.Do("intree/swap-payload", func() error {
		// A crash between the link and the rename leaves the link; upstream's writer would fail on it for ever.
		if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(stamp, next); err != nil {
			return err
		}
		return os.Rename(next, filepath.Join(dir, dataLink))
	})
}

// tidy makes the visible names those of p and removes hidden directories other than current.
func (p payload) tidy(dir, current string) error {
	owners := map[string]*int64{}
	for name, f := range p {
		first, _, _ := strings.Cut(name, "/")
		owners[first] = f.owner
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if _, wanted := owners[name]; wanted {
			delete(owners, name)
			continue
		}
		full := filepath.Join(dir, name)
		switch target, _ := os.Readlink(full); {
		case strings.HasPrefix(name, "..") && e.IsDir() && name != current:
			err = removal.All(full)
		case target == path.Join(dataLink, name):
			err = boundary.Do("intree/unlink-name", func() error { return os.Remove(full) })
		default: // not ours: a nested mount point, or the pod's own file
			continue
		}
		if err != nil {
			return err
		}
	}
	for name, owner := range owners {
		err := boundary.Do("intree/link-name", func() error {
			if err := os.Symlink(path.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
				return err
			}
			if owner == nil {
				return nil
			}
			return os.Lchown(filepath.Join(dir, name), int(*owner), -1)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shownIn reports whether the directory holds exactly the files of p.
func (p payload) shownIn(dir string) bool {
	found := 0
	err := filepath.WalkDir(dir, func(full string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, full)
		if err != nil {
			return err
		}
		f, ok := p[name]
		if !ok {
			return errDiffers
		}
		data, err := os.ReadFile(full)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) {
			return errDiffers
		}
		found++
		return nil
	})
	return err == nil && found == len(p)
}

var errDiffers = errors.New("differs")

// validate refuses paths that leave the volume or clash with its hidden names, and cleans the others.
func (p payload) validate() error {
	names := make([]string, 0, len(p))
	for name := range p {
		names = append(names, name)
	}
	sort.Strings(names) // the same error for the same payload
	for _, name := range names {
		if err := validatePath(name); err != nil {
			return err
		}
		if clean := path.Clean(name); clean != name {
			f := p[name]
			delete(p, name)
			p[clean] = f
		}
	}
	return nil
}

// validatePath follows the rules of upstream's atomic writer (pkg/volume/util/atomic_writer.go).
func validatePath(name string) error {
	const maxPath, maxName = 4096, 255
	switch {
	case name == "":
		return errors.New("path must not be empty")
	case strings.HasPrefix(name, "/"):
		return fmt.Errorf("path %q must be relative", name)
	case len(name) > maxPath:
		return fmt.Errorf("path must not be longer than %d bytes", maxPath)
	case strings.HasPrefix(name, ".."):
		return fmt.Errorf("path %q must not start with '..'", name)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("path %q must not contain a NUL byte", name)
	case path.Clean(name) == ".":
		return fmt.Errorf("path %q names no file", name)
	}
	for _, element := range strings.Split(name, "/") {
		if element == ".." {
			return fmt.Errorf("path %q must not contain '..'", name)
		}
		if len(element) > maxName {
			return fmt.Errorf("path must not have an element longer than %d bytes", maxName)
		}
	}
	return nil
}
