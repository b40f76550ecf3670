package standalone

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// layoutVersion is written into a data directory at its birth. A program that finds a newer one leaves it alone.
const layoutVersion = "1"

// maxDirLength keeps the longest socket below it (plugins_registry/block.csi.berth.io-reg.sock) within the 107 bytes
// of a unix socket's address.
const maxDirLength = 60

// DataDir is the directory of one instance and knows where everything in it is.
type DataDir string

// DefaultDataDir is where an instance lives unless --data-dir says otherwise.
const DefaultDataDir = DataDir("/var/lib/berth")

func (d DataDir) join(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

func (d DataDir) Kubeconfig() string      { return d.join("kubeconfig") }
func (d DataDir) APIServer() string       { return d.join("apiserver") }
func (d DataDir) Journal() string         { return d.join("journal") }
func (d DataDir) Pools() string           { return d.join("pools") }
func (d DataDir) PluginsRegistry() string { return d.join("plugins_registry") }
func (d DataDir) RegistrySocket(name string) string {
	return d.join("plugins_registry", name+"-reg.sock")
}
func (d DataDir) DriverSocket(name string) string { return d.join("plugins", name, "csi.sock") }
func (d DataDir) driversJournal() string          { return d.join("journal", "drivers.json") }
func (d DataDir) Control() string                 { return d.join("run", "berth.sock") }
func (d DataDir) FlexSocket() string              { return d.join("run", "flexvolume.sock") }
func (d DataDir) flexNotes() string               { return d.join("flexvolume") }
func (d DataDir) Log(name string) string          { return d.join("log", name) }

// ErrInUse says that another `berth up` runs on the directory.
var ErrInUse = errors.New("in use by another `berth up`")

// Open validates dir, makes it on the first use, and holds it against a second instance until release is called.
func Open(dir string) (d DataDir, release func(), err error) {
	if d, err = Resolve(dir); err != nil {
		return "", nil, err
	}
	if err := d.mustBeOurs(); err != nil {
		return "", nil, err
	}
	for _, sub := range []string{"", "run", "log", "journal", "pools", "plugins", "plugins_registry", "pods"} {
		mode := fs.FileMode(0o700)
		if sub == "pods" || sub == "" || sub == "plugins" || sub == "pools" {
			mode = 0o711 // what is mounted below is reached by its own path
		}
		if err := os.MkdirAll(d.join(sub), mode); err != nil {
			return "", nil, fmt.Errorf("data directory %s: %w", d, err)
		}
	}
	if release, err = d.lock(); err != nil {
		return "", nil, err
	}
	if err := d.checkVersion(); err != nil {
		release()
		return "", nil, err
	}
	return d, release, nil
}

// Resolve validates the path alone.
func Resolve(dir string) (DataDir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if strings.ContainsAny(abs, "\n\r\t\x00") {
		return "", fmt.Errorf("data directory %q: control characters in the path", abs)
	}
	if len(abs) > maxDirLength {
		return "", fmt.Errorf("data directory %s: the path is longer than %d bytes, and the unix sockets below it could not be opened; choose a shorter one", abs, maxDirLength)
	}
	// Paths are compared with those in the kernel's mount table, which knows no symbolic links.
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	return DataDir(abs), nil
}

// mustBeOurs refuses the directory of another version, and that of a kubelet, which has the same layout: its pods are
// unknown to our API, so their volumes would be unmounted and their directories removed. Our own has a version from before the
// first pod.
func (d DataDir) mustBeOurs() error {
	if err := d.knownVersion(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	pods, err := os.ReadDir(d.join("pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(pods) > 0 {
		return fmt.Errorf("%s was not made by berth and has pods in it (a kubelet's directory?); choose another data directory; nothing was changed", d)
	}
	return nil
}

// lock holds the directory. The lock goes with the process, so a kill -9 leaves nothing to clean.
func (d DataDir) lock() (func(), error) {
	f, err := os.OpenFile(d.join("run", "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s is %w; stop it with `berth down --data-dir %s`, or choose another directory", d, ErrInUse, d)
	}
	return func() { f.Close() }, nil
}

// checkVersion refuses another version, and gives a new directory this one.
func (d DataDir) checkVersion() error {
	err := d.knownVersion()
	if errors.Is(err, fs.ErrNotExist) {
		return os.WriteFile(d.join("version"), []byte(layoutVersion+"\n"), 0o644)
	}
	return err
}

// knownVersion refuses the directory of another version; fs.ErrNotExist: it has none.
func (d DataDir) knownVersion() error {
	b, err := os.ReadFile(d.join("version"))
	if err != nil {
		return err
	}
	if v := strings.TrimSpace(string(b)); v != layoutVersion {
		return fmt.Errorf("data directory %s was made by another version of berth (layout %q, this one reads %q); use that version or another directory", d, v, layoutVersion)
	}
	return nil
}
