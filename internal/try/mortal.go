package try

import (
	"os/exec"
	"runtime"
)

// startMortal starts a command that has a parent-death signal; how it ended comes on the channel. The signal is that of
// the thread that started it, which is therefore kept until the command has ended.
func startMortal(cmd *exec.Cmd) (ended chan error, err error) {
	ended, started := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return ended, <-started
}
