package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestBeginMaking(t *testing.T) {
	etcd := filepath.Join(t.TempDir(), "etcd")
	exists := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	begin := func() {
		t.Helper()
		if err := beginMaking(etcd); err != nil {
			t.Fatal(err)
		}
	}
	fill := func() {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(etcd, "member"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	if !exists(making(etcd)) {
		t.Fatal("the first start leaves no mark")
	}
	fill()
	begin() // after a death
	if exists(etcd) || !exists(making(etcd)) {
		t.Fatal("what was half made stays, or the mark is gone")
	}
	fill()
	if err := os.Remove(making(etcd)); err != nil { // it has served
		t.Fatal(err)
	}
	begin()
	if !exists(filepath.Join(etcd, "member")) || exists(making(etcd)) {
		t.Fatal("etcd's data was touched")
	}
}
