package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/flexvolume/install"
)

// hangs is a driver that never ends by itself.
type hangs struct{ flexvolume.Unsupported }

func (hangs) Init(ctx context.Context) (flexvolume.Capabilities, error) {
	<-ctx.Done()
	return flexvolume.Capabilities{}, ctx.Err()
}

func (hangs) Mount(ctx context.Context, _ flexvolume.Dir, _ *flexvolume.Options) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestMain makes this binary the program itself where it is executed by a driver's name.
func TestMain(m *testing.M) {
	drivers["hangs"] = func() flexvolume.Driver { return hangs{} }
	if _, is := drivers[filepath.Base(os.Args[0])]; is {
		main()
	}
	os.Exit(m.Run())
}

// as is the program by a driver's name.
func as(t *testing.T, driver string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "berth~"+driver)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, driver)); err != nil {
		t.Fatal(err)
	}
	return exec.Command(filepath.Join(dir, driver), args...)
}

// answered holds a finished process to the protocol.
func answered(t *testing.T, cmd *exec.Cmd, out []byte) (status, message string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(out))
	var a struct{ Status, Message string }
	if err := d.Decode(&a); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		t.Fatalf("more than one object: %q", out)
	}
	if cmd.ProcessState.ExitCode() != map[string]int{"Success": 0}[a.Status] && cmd.ProcessState.ExitCode() != 1 || (a.Status == "Success") != cmd.ProcessState.Success() {
		t.Fatalf("%s and exit %s", a.Status, cmd.ProcessState)
	}
	return a.Status, a.Message
}

// Every driver, fed with what no host would say: one object on stdout and stderr together, as upstream reads them.
func TestBadInput(t *testing.T) {
	junk := strings.Repeat("\xff{\"", 40_000)
	dir := "/nowhere/pods/u/volumes/berth~nfs/v"
	for driver := range drivers {
		for name, args := range map[string][]string{
			"nothing":                       {},
			"an empty call-out":             {""},
			"an unknown one":                {"frobnicate", "{}"},
			"no arguments":                  {"mount"},
			"bad JSON":                      {"mount", dir, "{"},
			"options that are not strings":  {"mount", dir, `{"server":1,"share":[]}`},
			"options of another driver":     {"mount", dir, `{"colour":"red"}`},
			"no options":                    {"mount", dir, "{}"},
			"a directory of the system's":   {"mount", "/etc", "{}"},
			"to unmount one of them":        {"unmount", "/"},
			"to unmount the device there":   {"unmountdevice", "/usr"},
			"a device that is a file":       {"unmountdevice", "/dev/null"},
			"junk of 120 kB in each place":  {"mount", junk, junk},
			"junk of 240 kB as a call-out":  {junk, junk},
			"junk for getvolumename":        {"getvolumename", junk},
			"junk for waitforattach":        {"waitforattach", junk, junk},
			"a directory that has a NUL in": {"unmount", "/nowhere/pods/u/volumes/berth~nfs/\\x00"},
			"sizes that are none":           {"expandvolume", "{}", "/x", "a", "b"},
		} {
			if driver == "hangs" {
				continue
			}
			t.Run(driver+"/"+name, func(t *testing.T) {
				cmd := as(t, driver, args...)
				out, _ := cmd.CombinedOutput()
				status, message := answered(t, cmd, out)
				if status == "Success" && name != "a directory that has a NUL in" || status != "Success" && message == "" {
					t.Errorf("%s: %q", status, message)
				}
			})
		}
	}
}

func TestSignals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			cmd := as(t, "hangs", "mount", "/nowhere/pods/u/volumes/berth~hangs/v", `{"blanked":"yes"}`)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Signals are caught before the arguments are blanked; before main, one ends the process without a word.
			await(t, "main", func() bool {
				return strings.Contains(line(cmd), "berth~hangs") && !strings.Contains(line(cmd), "blanked")
			})
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if status, message := answered(t, cmd, out.Bytes()); status != "Failure" || !strings.Contains(message, signal.String()) {
				t.Errorf("%s: %s", status, message)
			}
		})
	}
}

// The secret leaves the command line as soon as main runs.
func TestSecretLeavesTheCommandLine(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("hunter2hunter2"))
	cmd := as(t, "hangs", "mount", "/nowhere/pods/u/volumes/berth~hangs/v", `{"kubernetes.io/secret/password":"`+secret+`"}`)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the command line to be blanked", func() bool { return strings.Contains(line(cmd), "berth~hangs") && !strings.Contains(line(cmd), secret) })
	environ, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "environ"))
	if strings.Contains(string(environ), secret) {
		t.Error("the environment has it")
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if strings.Contains(out.String(), secret) {
		t.Error(out.String())
	}
}

// line is a process's command line.
func line(cmd *exec.Cmd) string {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "cmdline"))
	return string(text)
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// built is the program as it is shipped.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-flexvolume")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "berth-flexvolume")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as scripts/build.sh
	out, err := build.CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

const sizeLimit = 7 << 20

// What is installed is what is served.
func TestTableIsWhatIsInstalled(t *testing.T) {
	for _, driver := range install.Drivers {
		if _, served := drivers[driver]; !served {
			t.Errorf("%s is installed and not served", driver)
		}
	}
	if len(drivers) != len(install.Drivers)+1 { // hangs
		t.Errorf("%d drivers are served, %d installed", len(drivers)-1, len(install.Drivers))
	}
}

// It is copied to every node, and starts for every call.
func TestSize(t *testing.T) {
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(filepath.Dir(path))
	st, err := os.Stat(path)
	if err != nil || st.Size() > sizeLimit {
		t.Errorf("%d bytes, %v; at most %d are", st.Size(), err, sizeLimit)
	}
}

// What it links is bounded by what starts quickly and stays small.
func TestLinksNothingLarge(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for pkg := range strings.FieldsSeq(string(out)) {
		seen = seen || pkg == "berth.io/berth/internal/host/fsmount"
		for _, refused := range []string{"k8s.io/", "sigs.k8s.io/", "google.golang.org/", "github.com/spf13/", "net/http", "crypto/tls", "regexp", "text/template"} {
			if strings.HasPrefix(pkg, refused) {
				t.Errorf("links %s", pkg)
			}
		}
	}
	if !seen {
		t.Error("the list is not that of the program")
	}
}
