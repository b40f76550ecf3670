package flexvolume

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
)

// startProblem says in words why the program at path could not be started.
func startProblem(path string, err error) string {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		if f, elfErr := elf.Open(path); elfErr == nil {
			defer f.Close()
			return fmt.Sprintf("%s is a program for %s, and this machine is %s", path, strings.TrimPrefix(f.Machine.String(), "EM_"), runtime.GOARCH)
		}
		return fmt.Sprintf("%s is neither a program for this machine nor a script that begins with #!", path)
	case errors.Is(err, syscall.ETXTBSY):
		return fmt.Sprintf("%s is being written", path)
	case errors.Is(err, syscall.ENOENT):
		if interpreter := interpreterOf(path); interpreter != "" {
			return fmt.Sprintf("%s wants %s, which is not there", path, interpreter)
		}
		return fmt.Sprintf("%s, or what it is to be run by, is not there", path)
	case errors.Is(err, syscall.E2BIG):
		return "its options and secrets are more than the kernel passes to a program"
	}
	return err.Error()
}

// interpreterOf is the program that a script names in its first line.
func interpreterOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	line, _ := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	rest, script := strings.CutPrefix(line, "#!")
	if fields := strings.Fields(rest); script && len(fields) > 0 {
		return oneLine(fields[0], 200)
	}
	return ""
}
