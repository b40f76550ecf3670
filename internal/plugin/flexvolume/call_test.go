package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.io/berth/internal/plugin"
)

// script writes an executable.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "driver")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExecute(t *testing.T) {
	secrets := newRedactor(map[string][]byte{"password": []byte("geheim77")})
	for name, c := range map[string]struct {
		driver    string
		args      []string
		want      string // in the error
		not       string
		uncertain bool
	}{
		"success":                                     {driver: `echo '{"status":"Success"}'`},
		"success, with noise on stderr":               {driver: `echo noise >&2; echo '{"status":"Success"}'`},
		"failure":                                     {driver: `echo '{"status":"Failure","message":"no such share"}'`, want: "mount of FlexVolume driver k8s/x failed: no such share"},
		"failure without a message":                   {driver: `echo '{"status":"Failure"}'`, want: `status "Failure" without a message`},
		"an unknown status":                           {driver: `echo '{"status":"Maybe"}'`, want: `status "Maybe"`},
		"failure and an exit status":                  {driver: `echo '{"status":"Failure","message":"m"}'; exit 3`, want: "failed: m"},
		"success and an exit status":                  {driver: `echo '{"status":"Success"}'; exit 3`, want: "answered Success and ended with exit status 3", uncertain: true},
		"rubbish before the answer":                   {driver: `echo mounting; echo '{"status":"Success"}'`, want: "something else before its answer", uncertain: true},
		"nothing":                                     {driver: `exit 1`, want: "answered nothing: want one JSON object on standard output (exit status 1)", uncertain: true},
		"killed by a signal":                          {driver: `kill -SEGV $$`, want: "it was ended by segmentation fault", uncertain: true},
		"its last line of stderr":                     {driver: `printf 'first\nlast words\n\n' >&2; exit 2`, want: `its last line of stderr: "last words"`, not: "first", uncertain: true},
		"secrets on stderr":                           {driver: `echo "password=geheim77 $2" >&2; exit 2`, args: []string{"/d", `{"kubernetes.io/secret/password":"Z2VoZWltNzc="}`}, want: "password=<secret>", not: "Z2Vo", uncertain: true},
		"secrets in the message":                      {driver: `echo '{"status":"Failure","message":"geheim77 is wrong"}'`, want: "failed: <secret> is wrong", not: "geheim"},
		"100 MB on stdout":                            {driver: `head -c 100000000 /dev/zero | tr '\0' x`, want: "answered more than 1048576 bytes", uncertain: true},
		"100 MB on stderr":                            {driver: `head -c 100000000 /dev/zero | tr '\0' x >&2; echo '{"status":"Failure","message":"full"}'`, want: "(a line of more than 65536 bytes)"},
		"an argument that no kernel takes":            {driver: `echo '{"status":"Success"}'`, args: []string{strings.Repeat("x", 200_000)}, want: "can't be run: its options and secrets are 200000 bytes"},
		"a zero in an argument":                       {driver: `echo '{"status":"Success"}'`, args: []string{"a\x00b"}, want: "zero byte"},
		"a process left behind that holds the output": {driver: `sleep 5 & echo '{"status":"Success"}'`},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := execute(t.Context(), "k8s/x", script(t, c.driver), callMount, 30*time.Second, secrets, c.args)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || c.not != "" && strings.Contains(err.Error(), c.not) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if errors.Is(err, plugin.ErrUncertain) != c.uncertain {
				t.Errorf("uncertain %v: %v", !c.uncertain, err)
			}
		})
	}
}

func TestNotSupported(t *testing.T) {
	for _, exit := range []int{0, 1} { // upstream takes it with either
		_, err := execute(t.Context(), "k8s/x", script(t, fmt.Sprintf(`echo '{"status":"Not supported"}'; exit %d`, exit)), callMount, time.Minute, redactor{}, nil)
		if !errors.Is(err, errNotSupported) {
			t.Errorf("exit %d: %v", exit, err)
		}
	}
}

// What a driver's environment, arguments and directory are.
func TestWhatADriverGets(t *testing.T) {
	t.Setenv("BERTH_KILL_AT", "x")
	t.Setenv("HTTPS_PROXY", "http://proxy")
	a, err := execute(t.Context(), "k8s/x", script(t, `printf '{"status":"Success","message":"%s %s %s %s %s %s"}' "$1" "$2" "$3" "$HTTPS_PROXY" "[$BERTH_KILL_AT]" "$(pwd)"`), callMount, time.Minute, redactor{}, []string{"/a b", "{}"})
	if err != nil || a.Message != "mount /a b {} http://proxy [] /" {
		t.Errorf("%q, %v", a.Message, err)
	}
}

// Past the deadline the whole process group is gone, what was forked, too.
func TestDeadlineKillsTheGroup(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	began := time.Now()
	_, err := execute(t.Context(), "k8s/x", script(t, `sleep 100 & echo $! $$ >`+pids+`; echo still trying >&2; wait`), callMountDevice, 300*time.Millisecond, redactor{}, nil)
	if want := `mountdevice of FlexVolume driver k8s/x gave no answer for 300ms and was killed; its last line of stderr: "still trying"`; err == nil || err.Error() != want {
		t.Errorf("error %v", err)
	}
	if !errors.Is(err, plugin.ErrUncertain) || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	text, readErr := os.ReadFile(pids)
	if readErr != nil {
		t.Fatal(readErr)
	}
	for _, field := range strings.Fields(string(text)) {
		var pid int
		fmt.Sscan(field, &pid)
		gone(t, pid)
	}
}

// gone waits until a process has ended; one that nobody has waited for yet is a zombie.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives on: %s", pid, stat)
		}
	}
}

// When this program stops, a call-out ends with it, and its outcome is not known.
func TestStopEndsACallOut(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err := execute(ctx, "k8s/x", script(t, `sleep 100`), callMount, time.Minute, redactor{}, nil)
	if err == nil || !errors.Is(err, plugin.ErrUncertain) || !strings.Contains(err.Error(), "this program is stopping") {
		t.Error(err)
	}
}

func TestWhyAProgramDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// An ELF header of a 64-bit program for s390x, which is no machine that the tests run on.
	elf := append([]byte("\x7fELF\x02\x02\x01"), make([]byte, 57)...)
	copy(elf[16:], "\x00\x02\x00\x16\x00\x00\x00\x01")
	copy(elf[52:], "\x00\x40")
	for want, path := range map[string]string{
		"is a program for S390":         write("elf", string(elf)),
		"neither a program":             write("text", "status: Success\n"),
		"wants /usr/bin/no-such-python": write("python", "#!/usr/bin/no-such-python -u\n"),
		"is not there":                  filepath.Join(dir, "nothing"),
	} {
		_, err := execute(t.Context(), "k8s/x", path, callInit, time.Minute, redactor{}, nil)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, plugin.ErrUncertain) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// FuzzStartProblem: whatever stands in the file of a driver, why it does not start is told in one line that can be an event.
func FuzzStartProblem(f *testing.F) {
	for _, s := range []string{"", "#!", "#!/no/such/interpreter -x\n", "#! \t\x00\n", "#!/bin/\x1b[31msh\n", "\x7fELF", "\x7fELF\x02\x01\x01\x00", "MZ", "#!" + strings.Repeat("a", 300)} {
		f.Add([]byte(s))
	}
	errs := []error{syscall.ENOEXEC, syscall.ENOENT, syscall.ETXTBSY, syscall.E2BIG, syscall.EACCES}
	f.Fuzz(func(t *testing.T, program []byte) {
		path := filepath.Join(t.TempDir(), "driver")
		if err := os.WriteFile(path, program, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, err := range errs {
			said := startProblem(path, &os.PathError{Op: "fork/exec", Path: path, Err: err})
			if said == "" || len(said) > len(path)+400 || said != oneLine(said, 4096) {
				t.Errorf("%v of %q: %q", err, program, said)
			}
		}
	})
}
