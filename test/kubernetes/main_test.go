//go:build kubernetes

// Package kubernetes tests Berth in a real Kubernetes: components built from their Go modules (build.sh) run as one
// node in namespaces of their own (cluster.sh). All tests share that cluster, each in a Kubernetes namespace of its own.
// They need root: `make test-kubernetes`.
//
// Who runs a test again and again starts the cluster first, by `cluster.sh up`: the tests use one that runs, and leave it.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// shared is the cluster of all stories.
var shared *cluster

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("the tests in a real Kubernetes need root: run `make test-kubernetes`")
	}
	dir, err := stateDirectory()
	if err != nil {
		return 0, err
	}
	shared = &cluster{state: dir}
	if shared.inside(context.Background(), "true").Run() == nil {
		fmt.Println("using the cluster that runs already")
		return m.Run(), nil
	}
	build := shared.script(context.Background(), "build.sh")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build.sh: %w", err)
	}
	if err := shared.start(); err != nil {
		return 0, err
	}
	code := m.Run()
	return code, errors.Join(shared.end(), shared.nothingLeft())
}

// stateDirectory is where state.sh has it.
func stateDirectory() (string, error) {
	dir := os.Getenv("BERTH_TEST_KUBERNETES")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("set BERTH_TEST_KUBERNETES to a directory for the cluster: %w", err)
		}
		dir = filepath.Join(cache, "berth", "test-kubernetes")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}
