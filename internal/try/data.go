package try

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// dataBytes is what a step writes: more than a page cache's block, less than the smallest volume.
const dataBytes = 256 << 10

// writeData writes a file that nobody can guess, makes it durable, and returns its sum.
func writeData(dir, name string, seed uint64) (string, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum, err := fill(f, seed)
	if err != nil {
		return "", err
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return sum, d.Sync()
}

// fill writes to f from where it stands, and syncs.
func fill(f *os.File, seed uint64) (string, error) {
	b := make([]byte, dataBytes)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(os.Getpid()), byte(os.Getpid() >> 8)})
	_, _ = r.Read(b)
	if _, err := f.Write(b); err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), f.Sync()
}

// checkData compares a file with the sum of what was written.
func checkData(dir, name, sum string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	return compare(f, sum)
}

func compare(f *os.File, sum string) error {
	h := sha256.New()
	n, err := io.CopyN(h, f, dataBytes)
	if err != nil {
		return fmt.Errorf("%s has %d of %d bytes: %w", f.Name(), n, dataBytes, err)
	}
	if hex.EncodeToString(h.Sum(nil)) != sum {
		return fmt.Errorf("%s has another content", f.Name())
	}
	return nil
}
