package mortal

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const parent = "BERTH_TEST_MORTAL_PARENT"

// TestMain is the parent of a child, too, when it is asked to be.
func TestMain(m *testing.M) {
	if os.Getenv(parent) == "" {
		os.Exit(m.Run())
	}
	child := exec.Command("sleep", "300")
	ended, err := Start(child)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(child.Process.Pid)
	<-ended
}

// The child of a process that is killed is gone without anybody's asking.
func TestChildDiesWithItsParent(t *testing.T) {
	p := exec.Command(os.Args[0])
	p.Env = append(os.Environ(), parent+"=1")
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Wait() }()
	defer func() { _ = p.Process.Kill() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the parent says %q", line)
	}
	child, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}, 20_000)
	if err != nil || n != 1 {
		_ = unix.PidfdSendSignal(child, unix.SIGKILL, nil, 0)
		t.Fatalf("the child lives on (%v)", err)
	}
}

func TestHowItEnded(t *testing.T) {
	ended, err := Start(exec.Command("sh", "-c", "exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || err.Error() != "exit status 3" {
		t.Errorf("it ended with %v", err)
	}
	if _, err := Start(exec.Command("/nowhere/no-such-program")); err == nil {
		t.Error("what does not exist was started")
	}
}
