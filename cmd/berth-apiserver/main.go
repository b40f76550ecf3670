// berth-apiserver is the Kubernetes API of one Berth instance in one process: etcd, kube-apiserver and those of
// upstream's controllers that have nothing to do with volumes.
//
// `berth up` starts it, watches it and is the only one that speaks to it at first; with the kubeconfig that it writes
// any kubectl can. It is a program and a Go module of its own so that the controllers and drivers do not link
// k8s.io/kubernetes: they stay small, their feature gates do not collide, and the CSI specification that each needs
// (1.12 here, through upstream's volume plugins; newer in the drivers) does not have to be the same.
//
// Flow: credentials on the disk → etcd on unix sockets in a 0700 directory → kube-apiserver → "ready" to the parent →
// controllers. State is etcd's directory and the credentials beside it; a kill -9 at any point loses no
// acknowledged write.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// settled is when the controllers have synced after the start.
const settled = 10 * time.Second

// drain is what requests under way get after the signal to end. kube-apiserver itself would wait a minute for watches to
// end, and those of the controllers in this process never do.
const drain = 300 * time.Millisecond

func main() {
	var o options
	flag.StringVar(&o.dir, "data-dir", "", "directory of etcd and of the credentials (required)")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:6443", "address and port of the API")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "where to write the administrator's kubeconfig (default: kubeconfig in the data directory)")
	flag.StringVar(&o.controllers, "controllers", volumeControllersBerth, "who runs the volume controllers: berth (not this program) or upstream")
	flag.StringVar(&o.volumePluginDir, "volume-plugin-dir", "", "directory of the FlexVolume drivers that upstream's controllers call (default: upstream's)")
	flag.IntVar(&o.readyFD, "ready-fd", -1, "file descriptor that gets one line when the API is ready")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "berth-apiserver: etcd, kube-apiserver and the generic controllers of one Berth instance.\n`berth up` starts it; by hand:\n\n  berth-apiserver --data-dir DIR [--listen ADDR:PORT]\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := o.validate(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-apiserver:", err)
		os.Exit(2)
	}
	if err := run(o); err != nil {
		klog.Flush()
		fmt.Fprintln(os.Stderr, "berth-apiserver:", err)
		os.Exit(1)
	}
}

// options are the flags, validated.
type options struct {
	dir, listen, kubeconfig, controllers string
	volumePluginDir                      string
	readyFD                              int

	host string
	port int
}

func (o *options) validate() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if o.dir == "" {
		return errors.New("--data-dir is required")
	}
	abs, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	o.dir = abs
	if o.kubeconfig == "" {
		o.kubeconfig = filepath.Join(o.dir, "kubeconfig")
	} else if o.kubeconfig, err = filepath.Abs(o.kubeconfig); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return fmt.Errorf("--listen %q is not ADDR:PORT", o.listen)
	}
	if net.ParseIP(host) == nil {
		return fmt.Errorf("--listen %q: %q is not an IP address", o.listen, host)
	}
	o.host = host
	if o.port, err = strconv.Atoi(port); err != nil || o.port < 1 || o.port > 65535 {
		return fmt.Errorf("--listen %q: the port must be between 1 and 65535", o.listen)
	}
	if o.controllers != volumeControllersBerth && o.controllers != volumeControllersUpstream {
		return fmt.Errorf("--controllers %q: want %s or %s", o.controllers, volumeControllersBerth, volumeControllersUpstream)
	}
	return nil
}

// run brings everything up in order and takes it down in the reverse order.
func run(o options) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(o.dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	// Said now in one line rather than by kube-apiserver in the middle of its start.
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("the API cannot listen on %s: %w; choose another address with --listen", o.listen, err)
	}
	l.Close()

	creds, err := ensureCredentials(filepath.Join(o.dir, "pki"), o.host)
	if err != nil {
		return err
	}
	if err := creds.writeKubeconfig(o.kubeconfig, o.host, o.port); err != nil {
		return err
	}
	stopEtcd, err := startEtcd(o.dir)
	if err != nil {
		return err
	}
	defer stopEtcd()

	// The API server installs its own handler for SIGTERM and SIGINT and returns; this context is for the rest.
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- serveAPI(o, creds) }()
	ready := make(chan error, 1)
	go func() { ready <- waitReady(ctx, creds, o.host, o.port) }()
	select {
	case err := <-served:
		return fmt.Errorf("kube-apiserver ended before it was ready: %w", err)
	case err := <-ready:
		if err != nil {
			return err
		}
	}
	if o.readyFD >= 0 {
		f := os.NewFile(uintptr(o.readyFD), "ready")
		fmt.Fprintln(f, "ready")
		f.Close()
	}
	// The start leaves some 100 MB of garbage that would otherwise stay for as long as the instance is idle.
	time.AfterFunc(settled, debug.FreeOSMemory)
	controllers := make(chan error, 1)
	go func() { controllers <- runControllers(o, creds) }()
	select {
	case <-ctx.Done():
	case err := <-served:
		if ctx.Err() == nil {
			return fmt.Errorf("kube-apiserver ended: %w", errOr(err, "without an error"))
		}
		return nil
	case err := <-controllers:
		if ctx.Err() == nil {
			return fmt.Errorf("the generic controllers ended: %w", errOr(err, "without an error"))
		}
	}
	select {
	case <-served:
	case <-time.After(drain):
	}
	return nil
}

func errOr(err error, words string) error {
	if err != nil {
		return err
	}
	return errors.New(words)
}

// lock holds path for as long as the process lives, so that two programs never open one etcd directory.
func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s is in use by another berth-apiserver", filepath.Dir(path))
	}
	return func() { f.Close() }, nil
}
