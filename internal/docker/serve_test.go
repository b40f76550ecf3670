package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// plugin is one that serves, and how to end it.
func serve(t *testing.T, o Options) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	serving, ended := make(chan struct{}), make(chan error, 1)
	o.Serving = func(string) { close(serving) }
	o.Volumes = newShelf()
	go func() { ended <- New(o).Run(ctx) }()
	select {
	case <-serving:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() error {
		cancel()
		return <-ended
	}
}

func activate(socket string) error {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	r, err := c.Post("http://plugin/Plugin.Activate", "", nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errNone, err)
	}
	return r.Body.Close()
}

// Two instances do not fight for a name: the first keeps it, and when it has gone the socket has, too.
func TestOneServes(t *testing.T) {
	o := Options{Name: "berth", Dir: filepath.Join(t.TempDir(), "plugins")}
	end := serve(t, o)
	if err := activate(o.socket()); err != nil {
		t.Fatal(err)
	}
	second := New(Options{Name: o.Name, Dir: o.Dir, Volumes: newShelf()})
	if err := second.Run(t.Context()); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), o.socket()) {
		t.Errorf("the second one: %v", err)
	}
	if err := activate(o.socket()); err != nil {
		t.Errorf("after the second one: %v", err)
	}
	other := serve(t, Options{Name: "other", Dir: o.Dir})
	if err := errors.Join(end(), other()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// Whoever is not root may not keep root's plugin from its name: neither by an address that anybody can take, nor by a file of
// their own where the lock is.
func TestNobodyElseCanTakeTheName(t *testing.T) {
	o := Options{Name: "berth", Dir: t.TempDir(), Volumes: newShelf()}
	real, err := filepath.EvalSymlinks(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(filepath.Join(real, "berth.sock")))
	taken, err := net.Listen("unix", "@berth-plugin-"+hex.EncodeToString(sum[:16])) // what the name's lock once was
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := serve(t, o)(); err != nil {
		t.Error(err)
	}

	lock := filepath.Join(o.Dir, ".berth.sock.lock")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(lock, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := New(o).Run(t.Context()); err == nil || !strings.Contains(err.Error(), lock) || errors.Is(err, ErrInUse) {
		t.Errorf("with a lock that others can open: %v", err)
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(o.Dir, "elsewhere"), lock); err != nil {
		t.Fatal(err)
	}
	if err := New(o).Run(t.Context()); err == nil {
		t.Error("followed a link to its lock")
	}
}

// Many that start at once: one serves, and when it ends another can, however often.
func TestManyWantTheName(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "berth.sock")
	var holders, taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l, err := takeLock(socket)
				if errors.Is(err, ErrInUse) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				taken.Add(1)
				if holders.Add(1) > 1 {
					t.Error("two hold the name")
				}
				holders.Add(-1)
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if taken.Load() == 0 {
		t.Error("nobody got it")
	}
}

// A process that was killed leaves its socket and its lock; the next one takes its place. What is no socket stays.
func TestLeftBehind(t *testing.T) {
	o := Options{Name: "berth", Dir: t.TempDir()}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.socket()})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(filepath.Join(o.Dir, ".berth.sock.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	end := serve(t, o)
	if err := activate(o.socket()); err != nil {
		t.Error(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(o.socket(), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Volumes = newShelf()
	if err := New(o).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("over a file: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		o  Options
		ok bool
	}{
		"default":         {Options{Name: DefaultName, Dir: DefaultDir}, true},
		"a path as name":  {Options{Name: "../berth", Dir: DefaultDir}, false},
		"no name":         {Options{Dir: DefaultDir}, false},
		"relative":        {Options{Name: "berth", Dir: "plugins"}, false},
		"too long a path": {Options{Name: "berth", Dir: "/" + strings.Repeat("x", 107)}, false},
	} {
		if err := c.o.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A new ext4 looks empty, one with files keeps what it has, whatever it is called.
func TestClearRoot(t *testing.T) {
	for name, c := range map[string]struct{ have, want []string }{
		"new":            {[]string{lostFound + "/"}, nil},
		"empty":          {nil, nil},
		"in use":         {[]string{lostFound + "/", "file"}, []string{"file", lostFound}},
		"rescued files":  {[]string{lostFound + "/", lostFound + "/#12"}, []string{lostFound}},
		"another's file": {[]string{"file"}, []string{"file"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range c.have {
				path := filepath.Join(dir, f)
				if strings.HasSuffix(f, "/") {
					if err := os.Mkdir(path, 0o700); err != nil {
						t.Fatal(err)
					}
				} else if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_ = clearRoot(dir)
			var have []string
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				have = append(have, e.Name())
			}
			if fmt.Sprint(have) != fmt.Sprint(c.want) {
				t.Errorf("have %v, want %v", have, c.want)
			}
		})
	}
}
