package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdEndpoint is a unix socket: nobody without access to the 0700 directory reaches etcd. etcd insists on host:port in
// unix URLs and takes it as a file name relative to the working directory.
const (
	etcdEndpoint = "unix://localhost:2379"
	etcdPeer     = "unix://localhost:2380"
)

// startEtcd runs etcd on dir/etcd with its sockets in dir/run and returns when it serves.
func startEtcd(dir string) (stop func(), err error) {
	run := filepath.Join(dir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(run, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chdir(run); err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "etcd")
	if err := beginMaking(cfg.Dir); err != nil {
		return nil, err
	}
	client, _ := url.Parse(etcdEndpoint)
	peer, _ := url.Parse(etcdPeer)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel = "error"
	// A single member elects itself one to five ticks after its start, and no tick after that is good for anything. With
	// shorter ones it is up a quarter of a second sooner, and an idle instance's processor is woken 200 times a second
	// for them, which was a quarter of all that it did.
	cfg.TickMs, cfg.ElectionMs = 100, 500
	// 10 000 is upstream's recommendation for a small cluster; the default keeps 100 000 entries in memory.
	cfg.SnapshotCount = 10000
	cfg.QuotaBackendBytes = 8 << 30
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd on %s: %w", cfg.Dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		if err := os.Remove(making(cfg.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.Server.Stop()
			return nil, err
		}
		// Not Close: it waits 5 s for watches, which end with the process. Stop writes everything out.
		return e.Server.Stop, nil
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("etcd on %s: %w", cfg.Dir, err)
	case <-time.After(60 * time.Second):
		// Without Close, which waits for what did not become ready; the process ends.
		return nil, fmt.Errorf("etcd on %s was not ready within 60 s", cfg.Dir)
	}
}

// making stands beside etcd's directory from before it is made until etcd has served for the first time.
func making(etcd string) string { return etcd + ".making" }

// beginMaking removes what a process left that died while it made etcd's directory: a log without its only member in
// it, with which etcd would wait for ever for a leader. Nothing was served from it yet.
func beginMaking(etcd string) error {
	_, err := os.Lstat(making(etcd))
	interrupted := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = os.Lstat(etcd)
	switch {
	case interrupted:
		return os.RemoveAll(etcd)
	case errors.Is(err, fs.ErrNotExist):
		return os.WriteFile(making(etcd), nil, 0o600)
	}
	return err
}
