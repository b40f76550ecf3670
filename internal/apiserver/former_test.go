package apiserver

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAwaitFormer(t *testing.T) {
	dir := t.TempDir()
	if err := AwaitFormer(t.Context(), dir); err != nil {
		t.Fatalf("on the first start: %v", err)
	}
	f, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := AwaitFormer(t.Context(), dir); err != nil {
		t.Fatalf("when nothing runs: %v", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	time.AfterFunc(100*time.Millisecond, func() { f.Close() })
	if err := AwaitFormer(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if time.Since(begun) < 90*time.Millisecond {
		t.Error("it did not wait")
	}
}
