package try

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mortal"
	"berth.io/berth/internal/host/mountpoint"
)

// envRole tells a child of this program what it is in a run; see Helper.
const envRole = "BERTH_TRY_ROLE"

const (
	roleBench  = "bench"
	roleSanity = "sanity"
)

// Where the order of a child is, and where its answer goes (ExtraFiles).
const (
	orderFD  = 3
	answerFD = 4
	lockFD   = 5
)

// order is what the keeper gives the bench.
type order struct {
	Options Options
	Work    string
	Former  former
}

// answer is what the bench gives back.
type answer struct {
	Report *Report
	Error  string
	Usage  bool
}

// endWithin is how long the bench may take to clean up after it was asked to end.
const endWithin = 90 * time.Second

// Run tries a driver. It keeps the run: the bench itself is a child, where it can be in namespaces of its own, whose end
// ends every process and every mount in them. What remains after the child's end, however it came, is taken away here.
//
// The report is nil with an error; an error that is ErrUsage says that nothing was tried.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	say := newTeller(o.Out, o.Color)
	work, lock, err := makeWork()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	signal.Ignore(syscall.SIGPIPE) // who reads the progress may have enough of it; the run still has to be cleaned up
	report, err := keep(ctx, o, order{Options: o, Work: work, Former: sweepFormer(work, say.line)}, lock)
	if o.Keep {
		say.line("kept: " + work + " (logs of the driver and of the instance; remove it yourself)")
		marked := os.WriteFile(filepath.Join(work, kept), nil, 0o600)
		return report, errors.Join(err, marked, unmountBelow(work), detachLoops(work))
	}
	return report, errors.Join(err, sweep(work))
}

// keep runs the bench and waits for its answer.
func keep(ctx context.Context, o Options, j order, lock *os.File) (*Report, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answerR, answerW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answerR.Close()
	out := o.Out
	cmd := exec.Command(self, "try")
	cmd.Env = append(os.Environ(), envRole+"="+roleBench)
	cmd.ExtraFiles = []*os.File{orderR, answerW, lock}
	cmd.Stderr = os.Stderr
	if out != nil {
		cmd.Stdout = out
	}
	cmd.SysProcAttr = attributes(o)
	ended, err := mortal.Start(cmd)
	orderR.Close()
	answerW.Close()
	if err != nil {
		orderW.Close()
		return nil, fmt.Errorf("start the bench: %w%s", err, adviceFor(err))
	}
	go func() {
		defer orderW.Close()
		_ = json.NewEncoder(orderW).Encode(j)
	}()
	said := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(answerR)
		said <- b
	}()
	var exit error
	select {
	case exit = <-ended:
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case exit = <-ended:
		case <-time.After(endWithin):
			_ = cmd.Process.Kill()
			exit = <-ended
		}
	}
	var a answer
	if err := json.Unmarshal(<-said, &a); err != nil {
		return nil, fmt.Errorf("the bench ended without a report: %w", exit)
	}
	switch {
	case a.Usage:
		return nil, usageText(a.Error)
	case a.Error != "":
		return a.Report, errors.New(a.Error)
	}
	return a.Report, nil
}

// usageText is an ErrUsage that came through a pipe.
type usageText string

func (u usageText) Error() string        { return string(u) }
func (u usageText) Is(target error) bool { return target == ErrUsage }

// attributes of the bench's process. A driver that is the bench's own runs with it in a mount and a process namespace; without root
// these need a user namespace, in which the driver may mount. A driver of somebody else mounts in the namespace that
// the bench was started in, so the bench must be there to see it.
func attributes(o Options) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	for _, t := range []string{o.Driver, o.Controller} {
		if t == "" {
			continue
		}
		if target, err := parseTarget(t); err != nil || target.socket != "" {
			return a
		}
	}
	a.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	return a
}

func adviceFor(err error) string {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		return "; without root it needs user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"
	}
	return ""
}

// Helper is the entry of the children of a run; handled says that this execution was one, with its exit code.
func Helper(ctx context.Context, stdout *os.File) (code int, handled bool) {
	switch role := os.Getenv(envRole); role {
	case roleBench, roleSanity:
		os.Unsetenv(envRole)
		for _, fd := range []int{orderFD, answerFD, lockFD} {
			unix.CloseOnExec(fd)
		}
		if role == roleSanity {
			return sanityMain(), true
		}
		return benchMain(ctx, stdout), true
	}
	return 0, false
}

// benchMain is the bench's process.
func benchMain(ctx context.Context, stdout *os.File) int {
	var a answer
	defer func() { _ = json.NewEncoder(os.NewFile(answerFD, "answer")).Encode(a) }()
	var j order
	if err := json.NewDecoder(os.NewFile(orderFD, "order")).Decode(&j); err != nil {
		a.Error = err.Error()
		return 1
	}
	if os.Getpid() == 1 {
		if err := boundary.Do("try/own-namespaces", ownNamespaces); err != nil {
			a.Error = err.Error()
			return 1
		}
	}
	j.Options.Out = stdout
	signal.Ignore(syscall.SIGPIPE)
	report, err := run(ctx, j.Options, j.Work, j.Former)
	a.Report = report
	if err != nil {
		a.Error, a.Usage = err.Error(), errors.Is(err, ErrUsage)
	}
	return 0
}

// letGo detaches, in this namespace alone, what is mounted from loop devices: volumes and pools of others, who could not take
// their devices away while a copy of the mount is here, where the host's mounts are private.
//
// boundary: held by the caller.
func letGo() {
	mounts, err := mountpoint.List()
	if err != nil {
		return
	}
	needed := []string{os.TempDir()}
	if dir, err := os.Getwd(); err == nil {
		needed = append(needed, dir)
	}
	if self, err := os.Executable(); err == nil {
		needed = append(needed, self)
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		m := mounts[i]
		holds := func(path string) bool {
			return path == m.Path || strings.HasPrefix(path, strings.TrimSuffix(m.Path, "/")+"/")
		}
		if strings.HasPrefix(m.Source, "/dev/loop") && !slices.ContainsFunc(needed, holds) {
			_ = unix.Unmount(m.Path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
}

// ownNamespaces makes the namespaces that keep cloned private: mounts of the host still come in, none goes out, and /proc
// shows this namespace's processes.
//
// boundary: held by the caller.
func ownNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("a mount namespace of its own: %w", err)
	}
	letGo()
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/proc of a process namespace of its own: %w", err)
	}
	return nil
}
