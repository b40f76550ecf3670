// Package durable writes files that a crash or a power cut leaves as they were or as they shall be.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace gives the file at path the content, readable by its owner alone, and returns when content and name are on the disk. It is
// written as draft first, a name in the same directory: a crash leaves that, and the next Replace overwrites it.
//
// boundary: held by the caller.
func Replace(path, draft string, content []byte) error {
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

// SyncDirectory returns when the names in dir are on the disk.
func SyncDirectory(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
