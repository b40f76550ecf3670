// driver is a small, correct CSI driver with everything that `berth try` looks at: snapshots, clones, groups, expansion,
// raw block volumes, inline ephemeral ones. It has nothing of Berth in it. A volume is a directory with its data
// and a record beside it; staging and publishing are bind mounts; a raw block volume is a file behind a loop device.
//
// With --bug it does one thing wrong, so that the bench can be seen to find it.
package main

import (
	"context"
	"errors"
	"flag"
	"io/fs"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

// Bugs that --bug takes.
const (
	bugSmall     = "smaller-than-asked"     // CreateVolume answers half of required_bytes
	bugTwice     = "another-volume-again"   // a second CreateVolume with the same name makes a second volume
	bugForgets   = "data-lost-at-unstage"   // NodeUnstageVolume empties the volume
	bugLies      = "advertises-expansion"   // EXPAND_VOLUME is advertised, the RPCs are not there
	bugReadOnly  = "read-only-ignored"      // readonly publications are writable
	bugDelete    = "delete-missing-fails"   // DeleteVolume of what is not there is NOT_FOUND
	bugPaging    = "list-loses-a-page"      // ListVolumes skips an entry at each page
	bugNoMount   = "publishes-no-mount"     // NodePublishVolume makes a directory and mounts nothing
	bugSnapshot  = "empty-snapshots"        // a restored volume is empty
	bugSilent    = "errors-without-message" // every error has an empty message
	bugSecret    = "shows-secrets"          // volume_context has the secrets
	bugAmnesia   = "forgets-at-restart"     // volumes are known in memory alone
	bugLeak      = "leaks-at-delete"        // DeleteVolume answers OK and deletes nothing
	bugExits     = "exits-at-start"
	bugNotReady  = "never-ready"
	bugRubbish   = "rubbish-on-the-socket"
	bugCrash     = "crashes-at-stage"
	bugSizeAgain = "any-size-again" // the same name in another size is OK
)

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedGroupControllerServer

	name, node, state, bug string
	services               string // "", "controller" or "node"

	mu    sync.Mutex // one RPC at a time: a small driver
	began time.Time
}

func main() {
	d := &driver{began: time.Now()}
	var endpoint string
	flag.StringVar(&d.name, "name", "small.example.com", "driver name")
	flag.StringVar(&endpoint, "endpoint", os.Getenv("CSI_ENDPOINT"), "unix:///path of the CSI socket")
	flag.StringVar(&d.node, "nodeid", os.Getenv("NODE_ID"), "node id")
	flag.StringVar(&d.state, "state", "", "where the volumes are")
	flag.StringVar(&d.services, "services", "", "controller or node; empty: both")
	flag.StringVar(&d.bug, "bug", "", "do one thing wrong")
	flag.Parse()
	if d.bug == bugExits {
		log.Fatal("cannot reach the storage: no route to host")
	}
	path := strings.TrimPrefix(endpoint, "unix://")
	if path == "" || d.state == "" {
		log.Fatal("--endpoint and --state are needed")
	}
	for _, dir := range []string{"volumes", "snapshots", "groups"} {
		if err := os.MkdirAll(filepath.Join(d.state, dir), 0o755); err != nil {
			log.Fatal(err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	if d.bug == bugRubbish {
		rubbish(l)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
	csi.RegisterIdentityServer(s, d)
	if d.services != "node" {
		csi.RegisterControllerServer(s, d)
		csi.RegisterGroupControllerServer(s, d)
	}
	if d.services != "controller" {
		csi.RegisterNodeServer(s, d)
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() { <-stop.Done(); s.Stop() }()
	if err := s.Serve(l); err != nil {
		log.Fatal(err)
	}
}

// rubbish answers every connection with what no gRPC client understands.
func rubbish(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		_, _ = c.Write([]byte("HTTP/1.1 418 I'm a teapot\r\n\r\n"))
		_ = c.Close()
	}
}
