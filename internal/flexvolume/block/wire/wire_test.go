package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

func attach() Request {
	return Request{Version: Version, Driver: "block", Call: Attach, Within: 1000, Volume: "vol-1", Name: "pv-1", Node: "n1"}
}

func TestARequestArrivesAsItWasSent(t *testing.T) {
	for name, want := range map[string]Request{
		"attach":          attach(),
		"detach by id":    {Version: Version, Driver: "block", Call: Detach, Within: 1, Volume: "pv.example", Node: "n1"},
		"detach anywhere": {Version: Version, Driver: "block", Call: Detach, Within: 1, Volume: "v"},
		"mountdevice":     {Version: Version, Driver: "block", Call: MountDevice, Within: 1, Volume: "v", Path: "/a b/ü", FSType: "ext4", ReadOnly: true},
		"unmountdevice":   {Version: Version, Driver: "block", Call: UnmountDevice, Within: 1, Path: "/a"},
		"expandvolume":    {Version: Version, Driver: "block", Call: ExpandVolume, Within: 1, Volume: "v", Bytes: 1 << 40},
		"expandfs":        {Version: Version, Driver: "block", Call: ExpandFS, Within: 1, Volume: "v", Path: "/a", Bytes: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := WriteRequest(&b, want); err != nil {
				t.Fatal(err)
			}
			got, err := ReadRequest(&b)
			if err != nil || got != want {
				t.Errorf("read %+v, %v; want %+v", got, err, want)
			}
			if b.Len() != 0 {
				t.Errorf("%d bytes are left over", b.Len())
			}
		})
	}
}

func TestInvalidRequestsAreRefusedOnBothSides(t *testing.T) {
	for name, change := range map[string]func(*Request){
		"unknown call":              func(r *Request) { r.Call = "format" },
		"no call":                   func(r *Request) { r.Call = "" },
		"no driver":                 func(r *Request) { r.Driver = "" },
		"driver with a slash":       func(r *Request) { r.Driver = "../x" },
		"no wait":                   func(r *Request) { r.Within = 0 },
		"endless wait":              func(r *Request) { r.Within = 1 << 60 },
		"no volume":                 func(r *Request) { r.Volume = "" },
		"volume leaves a directory": func(r *Request) { r.Volume = ".." },
		"volume with a slash":       func(r *Request) { r.Volume = "a/b" },
		"volume with a NUL":         func(r *Request) { r.Volume = "a\x00b" },
		"volume too long":           func(r *Request) { r.Volume = strings.Repeat("a", 129) },
		"no node":                   func(r *Request) { r.Node = "" },
		"no name":                   func(r *Request) { r.Name = "" },
		"path without need":         func(r *Request) { r.Path = "/a" },
		"size without need":         func(r *Request) { r.Bytes = 1 },
		"filesystem without need":   func(r *Request) { r.FSType = "ext4" },
		"relative path":             func(r *Request) { *r = onPath("a/b") },
		"path with ..":              func(r *Request) { *r = onPath("/a/../b") },
		"path of the root":          func(r *Request) { *r = onPath("/") },
		"path with a line break":    func(r *Request) { *r = onPath("/a\nb") },
		"filesystem with an option": func(r *Request) { *r = onPath("/a"); r.Call, r.Volume, r.FSType = Mount, "v", "ext4,rw" },
		"negative size":             func(r *Request) { r.Call, r.Name, r.Node, r.Bytes = ExpandVolume, "", "", -1 },
	} {
		t.Run(name, func(t *testing.T) {
			r := attach()
			change(&r)
			if err := WriteRequest(io.Discard, r); !errors.Is(err, ErrInvalid) {
				t.Errorf("sent: %v, want ErrInvalid", err)
			}
			if _, err := ReadRequest(frame(t, r)); !errors.Is(err, ErrInvalid) {
				t.Errorf("read: %v, want ErrInvalid", err)
			}
		})
	}
}

func onPath(path string) Request {
	return Request{Version: Version, Driver: "block", Call: UnmountDevice, Within: 1, Path: path}
}

func frame(t testing.TB, v any) *bytes.Reader {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return framed(b)
}

func framed(b []byte) *bytes.Reader {
	return bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
}

func TestAnotherVersionIsToldWhatToDo(t *testing.T) {
	r := attach()
	r.Version = Version + 1
	_, err := ReadRequest(frame(t, r))
	if err == nil || !strings.Contains(err.Error(), "install the executable") {
		t.Errorf("error %v", err)
	}
}

func TestBrokenMessages(t *testing.T) {
	for name, b := range map[string]string{
		"nothing":             "",
		"half a length":       "\x00\x00",
		"length without text": "\x00\x00\x00\x05",
		"half a text":         "\x00\x00\x00\x05{\"a",
		"no length":           "\x00\x00\x00\x00{}",
		"too long":            "\x7f\xff\xff\xff{}",
		"no JSON":             "\x00\x00\x00\x02{x",
		"another type":        "\x00\x00\x00\x02[]",
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := ReadRequest(strings.NewReader(b)); err == nil {
				t.Errorf("read %+v", r)
			}
			if a, err := ReadAnswer(strings.NewReader(b)); err == nil {
				t.Errorf("read %+v", a)
			}
		})
	}
}

// An error with a long list of paths still arrives.
func TestALongErrorIsCut(t *testing.T) {
	var b bytes.Buffer
	if err := WriteAnswer(&b, Answer{Error: strings.Repeat("<\xff\u2028", MaxBytes)}); err != nil {
		t.Fatal(err)
	}
	a, err := ReadAnswer(&b)
	if err != nil || !strings.HasSuffix(a.Error, " …") {
		t.Errorf("error of %d bytes, %v", len(a.Error), err)
	}
}

// Whatever arrives, a request that is read obeys the rules, and can be sent again as it is.
func FuzzReadRequest(f *testing.F) {
	f.Add(mustRead(f, frame(f, attach())))
	f.Add(mustRead(f, frame(f, onPath("/a/b"))))
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		if r.Path != "" && (strings.Contains(r.Path, "/../") || r.Path[0] != '/') {
			t.Errorf("path %q", r.Path)
		}
		if r.Call != Detach && strings.ContainsAny(r.Volume, "/\x00") {
			t.Errorf("volume %q", r.Volume)
		}
		var out bytes.Buffer
		if err := WriteRequest(&out, r); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		if again, err := ReadRequest(&out); err != nil || again != r {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(mustRead(f, frame(f, Answer{Error: "volume v is busy"})))
	f.Add(mustRead(f, frame(f, Answer{Attached: true, Bytes: 1 << 30})))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ReadAnswer(bytes.NewReader(b))
		if err != nil {
			return
		}
		if a.Bytes < 0 {
			t.Errorf("%d bytes", a.Bytes)
		}
		if err := WriteAnswer(io.Discard, a); err != nil {
			t.Errorf("%+v cannot be sent: %v", a, err)
		}
	})
}

func mustRead(f *testing.F, r io.Reader) []byte {
	b, err := io.ReadAll(r)
	if err != nil {
		f.Fatal(err)
	}
	return b
}
