// Package wire is the conversation between the executable berth/block and the node agent, over a unix socket: one request, one
// answer, then the connection ends. Who may open the socket (root) may ask for everything.
//
// A message is its length in bytes, 4 of them, the most significant first, and then that many bytes of JSON. Both sides check what
// they read: the agent, because it acts as root; the executable, because an agent of another version may answer.
//
// The package is linked into an executable that starts for every call of a kubelet, so it imports what that executable has anyway.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// Version of the conversation. An executable is installed once, and its agent may be newer or older.
const Version = 1

// MaxBytes of one message. The largest has two paths and a node's name.
const MaxBytes = 32 << 10

// LongestCall is the most that a request may ask its agent to take.
const LongestCall = 10 * time.Minute

// Calls that an agent answers. Their meaning is that of the call-outs with the same names.
const (
	Attach        = "attach"
	Detach        = "detach"
	IsAttached    = "isattached"
	MountDevice   = "mountdevice"
	UnmountDevice = "unmountdevice"
	Mount         = "mount"
	Unmount       = "unmount"
	ExpandVolume  = "expandvolume"
	ExpandFS      = "expandfs"
)

// Request asks the agent for one call.
type Request struct {
	Version int    `json:"version"`
	Driver  string `json:"driver"` // "block"
	Call    string `json:"call"`
	// Within is how long the caller waits, in milliseconds; the agent gives up when it is over.
	Within int64 `json:"within"`
	// Volume is the volume's id. For Detach it may be the name under which a kubelet knows the volume.
	Volume string `json:"volume,omitempty"`
	// Name under which a kubelet knows the volume: that of the PersistentVolume, or of the volume in the pod.
	Name string `json:"name,omitempty"`
	// Node of Attach, Detach and IsAttached; empty at Detach: whichever has it.
	Node string `json:"node,omitempty"`
	// Path is where the volume is to appear, or to go from.
	Path     string `json:"path,omitempty"`
	FSType   string `json:"fsType,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"` // the size that the volume is to have
}

// Answer is what became of a request.
type Answer struct {
	// Error in words for a user; empty: it was done.
	Error    string `json:"error,omitempty"`
	Attached bool   `json:"attached,omitempty"` // of IsAttached
	Bytes    int64  `json:"bytes,omitempty"`    // the size that the volume has, of ExpandVolume and ExpandFS
}

// ErrInvalid says that a message breaks the rules of this package.
var ErrInvalid = errors.New("invalid message")

// ReadRequest reads and checks a request.
func ReadRequest(from io.Reader) (Request, error) {
	var r Request
	if err := read(from, &r); err != nil {
		return Request{}, err
	}
	return r, r.Validate()
}

// WriteRequest checks a request and sends it.
func WriteRequest(to io.Writer, r Request) error {
	r.Version = Version
	if err := r.Validate(); err != nil {
		return err
	}
	return write(to, r)
}

// ReadAnswer reads and checks an answer.
func ReadAnswer(from io.Reader) (Answer, error) {
	var a Answer
	if err := read(from, &a); err != nil {
		return Answer{}, err
	}
	if a.Bytes < 0 {
		return Answer{}, fmt.Errorf("%w: a size of %d bytes", ErrInvalid, a.Bytes)
	}
	return a, nil
}

// WriteAnswer sends an answer. One that is too long, because of its words, is cut.
func WriteAnswer(to io.Writer, a Answer) error {
	const most = MaxBytes / 8 // JSON may write a byte as six
	if len(a.Error) > most {
		a.Error = strings.ToValidUTF8(a.Error[:most], "") + " …"
	}
	return write(to, a)
}

func read(from io.Reader, into any) error {
	var head [4]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return fmt.Errorf("read the length of a message: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxBytes {
		return fmt.Errorf("%w: %d bytes long, where 1 to %d are allowed", ErrInvalid, n, MaxBytes)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(from, b); err != nil {
		return fmt.Errorf("read a message of %d bytes: %w", n, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// write sends a message in one piece, so that the other side never waits for the rest of it.
func write(to io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxBytes {
		return fmt.Errorf("%w: %d bytes long, where %d are allowed", ErrInvalid, len(b), MaxBytes)
	}
	_, err = to.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

// needs says which fields a call must have; the others must be empty.
type needs struct{ volume, name, node, path, bytes, how bool }

var calls = map[string]needs{
	Attach:        {volume: true, name: true, node: true},
	Detach:        {volume: true, node: true},
	IsAttached:    {volume: true, node: true},
	MountDevice:   {volume: true, path: true, how: true},
	UnmountDevice: {path: true},
	Mount:         {volume: true, path: true, how: true},
	Unmount:       {path: true},
	ExpandVolume:  {volume: true, bytes: true},
	ExpandFS:      {volume: true, path: true, bytes: true},
}

// Validate returns ErrInvalid with the field and what it may be.
func (r Request) Validate() error {
	if r.Version != Version {
		return fmt.Errorf("%w: the executable and the node agent are of different versions (%d and %d): install the executable of the running berth", ErrInvalid, r.Version, Version)
	}
	need, known := calls[r.Call]
	switch {
	case !known:
		return fmt.Errorf("%w: unknown call %q", ErrInvalid, r.Call)
	case !isWord(r.Driver):
		return fmt.Errorf("%w: driver %q", ErrInvalid, r.Driver)
	case r.Within <= 0 || r.Within > LongestCall.Milliseconds():
		return fmt.Errorf("%w: a wait of %d ms, where 1 to %d are allowed", ErrInvalid, r.Within, LongestCall.Milliseconds())
	case need.bytes != (r.Bytes > 0):
		return fmt.Errorf("%w: %s of %d bytes", ErrInvalid, r.Call, r.Bytes)
	case !need.how && (r.FSType != "" || r.ReadOnly):
		return fmt.Errorf("%w: %s with a filesystem", ErrInvalid, r.Call)
	case r.FSType != "" && !isWord(r.FSType):
		return fmt.Errorf("%w: fsType %q", ErrInvalid, r.FSType)
	}
	if err := r.validateText(need); err != nil {
		return err
	}
	if need.path {
		return ValidPath(r.Path)
	}
	if r.Path != "" {
		return fmt.Errorf("%w: %s with a path", ErrInvalid, r.Call)
	}
	return nil
}

func (r Request) validateText(need needs) error {
	for _, f := range []struct {
		what, text string
		needed     bool
		valid      func(string) error
	}{
		{"volume", r.Volume, need.volume, r.validVolume},
		{"name", r.Name, need.name, ValidName},
		{"node", r.Node, need.node, ValidName},
	} {
		if !f.needed || f.what == "node" && r.Call == Detach && f.text == "" { // old hosts detach from wherever it is
			if f.text != "" {
				return fmt.Errorf("%w: %s with a %s", ErrInvalid, r.Call, f.what)
			}
			continue
		}
		if err := f.valid(f.text); err != nil {
			return fmt.Errorf("%s: %w", f.what, err)
		}
	}
	return nil
}

func (r Request) validVolume(s string) error {
	if r.Call == Detach {
		return ValidName(s)
	}
	return ValidID(s)
}

// ValidID: a volume's id becomes a file's name. Letters, digits, '-', '_' and '.', which it must not begin with; 128 bytes at most.
func ValidID(s string) error {
	if s == "" || len(s) > 128 || s[0] == '.' || !only(s, letters+"-_.") {
		return fmt.Errorf("%w: volume id %q: want 1 to 128 letters, digits, '-', '_' or '.'", ErrInvalid, s)
	}
	return nil
}

// ValidName: of an object in the API.
func ValidName(s string) error {
	if s == "" || len(s) > 253 || !only(s, letters+"-_.") {
		return fmt.Errorf("%w: name %q: want 1 to 253 letters, digits, '-', '_' or '.'", ErrInvalid, s)
	}
	return nil
}

// ValidPath: absolute, and written in one way only.
func ValidPath(s string) error {
	if !filepath.IsAbs(s) || filepath.Clean(s) != s || len(s) > 4095 || strings.ContainsAny(s, "\x00\n") || s == "/" {
		return fmt.Errorf("%w: path %q: want an absolute path without '.', '..' and doubled slashes", ErrInvalid, s)
	}
	return nil
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

func isWord(s string) bool {
	return s != "" && len(s) <= 32 && only(s, "abcdefghijklmnopqrstuvwxyz0123456789")
}

func only(s, allowed string) bool {
	for i := range len(s) {
		if strings.IndexByte(allowed, s[i]) < 0 {
			return false
		}
	}
	return true
}
