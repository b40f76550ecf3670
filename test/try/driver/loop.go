package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// attach returns the loop device of a file, making one when there is none. The kernel knows which: there is nothing
// to remember.
func attach(file string) (string, error) {
	if dev := attached(file); dev != "" {
		return dev, nil
	}
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer back.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	for range 100 { // another may take the device that the kernel named
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", err
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		config := unix.LoopConfig{Fd: uint32(back.Fd())}
		copy(config.Info.File_name[:], file)
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		dev.Close()
		if err == nil {
			return dev.Name(), nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return "", err
		}
	}
	return "", errors.New("no free loop device")
}

// haveLoops: a driver without root has none.
func haveLoops() bool {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

func attached(file string) string {
	found, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range found {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == file {
			return "/dev/" + strings.Split(f, "/")[3]
		}
	}
	return ""
}

func detach(file string) error {
	name := attached(file)
	if name == "" {
		return nil
	}
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	return unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
}

// resized tells the device that its file has grown.
func resized(file string) error {
	name := attached(file)
	if name == "" {
		return nil
	}
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	return unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0)
}

func truncate(file string, size int64) error { return internal(os.Truncate(file, size)) }
