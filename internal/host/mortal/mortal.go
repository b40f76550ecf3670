// Package mortal starts children that die with this process, however it dies.
package mortal

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts a command that the kernel kills when this process ends; how the command ended comes on the channel, once. The
// kernel sends that signal when the thread that forked ends, which is therefore kept until the command has ended.
//
// boundary: held by the caller.
func Start(cmd *exec.Cmd) (ended <-chan error, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	end, started := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			end <- cmd.Wait()
		}
	}()
	return end, <-started
}
