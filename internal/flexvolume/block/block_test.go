package block

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/flexvolume/block/wire"
)

// answering is an agent that answers every request in one way, and tells what it was asked.
func answering(t *testing.T, answer func(net.Conn, wire.Request)) (Driver, <-chan wire.Request) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked := make(chan wire.Request, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := wire.ReadRequest(c)
				if err != nil {
					t.Errorf("the agent cannot read the request: %v", err)
					return
				}
				asked <- r
				answer(c, r)
			}()
		}
	}()
	return Driver{agent{driver: "block", socket: socket}}, asked
}

var (
	volume = &flexvolume.Options{Name: "pv", FSType: "xfs", ReadOnly: true, User: map[string]string{OptionVolumeID: "vol-1"}}
	place  = flexvolume.Dir{Root: "/var/lib/kubelet", Below: "pods/1/volumes/berth~block/pv"}
)

const placed = "/var/lib/kubelet/pods/1/volumes/berth~block/pv"

func TestEachCallOutAsksForOneThing(t *testing.T) {
	d, asked := answering(t, func(c net.Conn, _ wire.Request) {
		_ = wire.WriteAnswer(c, wire.Answer{Attached: true, Bytes: 7})
	})
	for name, one := range map[string]struct {
		call func(context.Context) error
		want wire.Request
	}{
		"attach": {func(ctx context.Context) error { _, err := d.Attach(ctx, volume, "n"); return err },
			wire.Request{Call: wire.Attach, Volume: "vol-1", Name: "pv", Node: "n"}},
		"isattached": {func(ctx context.Context) error {
			is, err := d.IsAttached(ctx, volume, "n")
			if !is {
				t.Error("not attached")
			}
			return err
		}, wire.Request{Call: wire.IsAttached, Volume: "vol-1", Node: "n"}},
		"detach":        {func(ctx context.Context) error { return d.Detach(ctx, "pv", "n") }, wire.Request{Call: wire.Detach, Volume: "pv", Node: "n"}},
		"mountdevice":   {func(ctx context.Context) error { return d.MountDevice(ctx, place, "", volume) }, wire.Request{Call: wire.MountDevice, Volume: "vol-1", Path: placed, FSType: "xfs", ReadOnly: true}},
		"mount":         {func(ctx context.Context) error { return d.Mount(ctx, place, volume) }, wire.Request{Call: wire.Mount, Volume: "vol-1", Path: placed, FSType: "xfs", ReadOnly: true}},
		"unmount":       {func(ctx context.Context) error { _, err := d.Unmount(ctx, place); return err }, wire.Request{Call: wire.Unmount, Path: placed}},
		"unmountdevice": {func(ctx context.Context) error { return d.UnmountDevice(ctx, place) }, wire.Request{Call: wire.UnmountDevice, Path: placed}},
		"expandvolume": {func(ctx context.Context) error {
			size, err := d.ExpandVolume(ctx, volume, place, 9, 8)
			if size != 7 {
				t.Errorf("size %d", size)
			}
			return err
		}, wire.Request{Call: wire.ExpandVolume, Volume: "vol-1", Bytes: 9}},
		"expandfs": {func(ctx context.Context) error { return d.ExpandFS(ctx, volume, "", place, 9, 8) }, wire.Request{Call: wire.ExpandFS, Volume: "vol-1", Path: placed, Bytes: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := one.call(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := <-asked
			if got.Within <= 0 || got.Within > callWithin.Milliseconds() {
				t.Errorf("a wait of %d ms", got.Within)
			}
			one.want.Version, one.want.Driver, one.want.Within = wire.Version, "block", got.Within
			if got != one.want {
				t.Errorf("asked %+v, want %+v", got, one.want)
			}
		})
	}
}

func TestAnAgentThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	gone := filepath.Join(dir, "run", "flexvolume.sock")
	err := Driver{agent{"block", gone}}.Detach(t.Context(), "pv", "n")
	wantWords(t, err, "no node agent answers", gone, "berth up", "--data-dir "+dir)

	err = Driver{agent{"block", DefaultSocket + ".none"}}.Detach(t.Context(), "pv", "n")
	wantWords(t, err, "berth up")

	dead := filepath.Join(dir, "s") // left by a process that was killed
	l, listenErr := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if listenErr != nil {
		t.Fatal(listenErr)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	wantWords(t, Driver{agent{"block", dead}}.Detach(t.Context(), "pv", "n"), "no node agent answers")
}

func TestAnAgentThatFails(t *testing.T) {
	for name, one := range map[string]struct {
		answer func(net.Conn, wire.Request)
		want   string
	}{
		"refuses":         {func(c net.Conn, _ wire.Request) { _ = wire.WriteAnswer(c, wire.Answer{Error: "volume v is busy"}) }, "volume v is busy"},
		"dies":            {func(net.Conn, wire.Request) {}, "ended during detach"},
		"dies in between": {func(c net.Conn, _ wire.Request) { _, _ = c.Write([]byte{0, 0, 0, 9, '{'}) }, "ended during detach"},
		"answers rubbish": {func(c net.Conn, _ wire.Request) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n")) }, "invalid message"},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := answering(t, one.answer)
			wantWords(t, d.Detach(t.Context(), "pv", "n"), one.want)
		})
	}
}

// A host's deadline is told to the agent, and leaves time to say that it was missed.
func TestAnAgentThatHangs(t *testing.T) {
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	d, asked := answering(t, func(net.Conn, wire.Request) { <-held })
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	err := d.Detach(ctx, "pv", "n")
	wantWords(t, err, "has not answered detach")
	if ctx.Err() != nil {
		t.Error("nothing was left of the deadline")
	}
	if got := (<-asked).Within; got > 600 {
		t.Errorf("the agent was given %d ms", got)
	}
}

func TestTheOptionsOfAVolume(t *testing.T) {
	for name, one := range map[string]struct {
		user map[string]string
		want string
	}{
		"none":             {nil, "volumeID is missing"},
		"empty":            {map[string]string{"volumeID": ""}, "option volumeID"},
		"a path":           {map[string]string{"volumeID": "../x"}, "option volumeID"},
		"another option":   {map[string]string{"volumeID": "v", "pool": "default"}, `"pool"`},
		"a socket of mine": {map[string]string{"volumeID": "v", "socket": "/run/docker.sock"}, `"socket"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Driver{}.GetVolumeName(t.Context(), &flexvolume.Options{Name: "pv", User: one.user})
			wantWords(t, err, one.want)
		})
	}
	if name, err := (Driver{}).GetVolumeName(t.Context(), volume); err != nil || name != "vol-1" {
		t.Errorf("name %q, %v", name, err)
	}
}

func TestWhereTheSocketIs(t *testing.T) {
	installed := t.TempDir()
	was := os.Args[0]
	t.Cleanup(func() { os.Args[0] = was })
	os.Args[0] = filepath.Join(installed, "block")
	if got := findSocket(); got != DefaultSocket {
		t.Errorf("by default %s", got)
	}
	if err := os.WriteFile(filepath.Join(installed, SocketFile), []byte("/run/other.sock\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := findSocket(); got != "/run/other.sock" {
		t.Errorf("beside the executable %s", got)
	}
	t.Setenv(EnvSocket, "/run/mine.sock")
	if got := findSocket(); got != "/run/mine.sock" {
		t.Errorf("in the environment %s", got)
	}
}

func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q; want %q in it", err, w)
		}
	}
}

// TestHowLongACallMayTake: as long as its caller allows, up to what the agent takes; a caller that says nothing gets what is usual.
func TestHowLongACallMayTake(t *testing.T) {
	d, asked := answering(t, func(c net.Conn, _ wire.Request) { _ = wire.WriteAnswer(c, wire.Answer{}) })
	for name, tc := range map[string]struct{ caller, want time.Duration }{
		"no deadline":             {0, callWithin},
		"a short one":             {30 * time.Second, 30*time.Second - margin},
		"longer than is usual":    {9 * time.Minute, 9*time.Minute - margin},
		"the longest":             {wire.LongestCall, wire.LongestCall - margin},
		"longer than is accepted": {time.Hour, wire.LongestCall},
	} {
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if tc.caller > 0 {
			ctx, cancel = context.WithTimeout(ctx, tc.caller)
		}
		_, err := d.Unmount(ctx, place)
		cancel()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		within := time.Duration((<-asked).Within) * time.Millisecond
		if within > tc.want || within < tc.want-5*time.Second {
			t.Errorf("%s: %v, want %v", name, within, tc.want)
		}
	}
}
