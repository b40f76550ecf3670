// Package loop attaches files as block devices through the kernel's loop driver, by ioctl and without forking losetup.
//
// What flows in is a file; what flows out is /dev/loopN with direct I/O, so that data is cached once (by the
// filesystem on the device) and an fsync inside it reaches the file. A file is known by its device and inode, never by
// its path: LOOP_GET_STATUS64 reports them, and they stay true through renames and bind mounts. This package never
// reads or writes what a device holds.
//
// LOOP_CONFIGURE needs Linux 5.8.
package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoDevices says that the kernel (or the container) offers no loop devices at all.
var ErrNoDevices = errors.New("no loop devices here (load the kernel's loop module, or let the container have /dev/loop-control)")

const controlPath = "/dev/loop-control"

// Options of an attachment.
type Options struct {
	// SectorBytes is the device's logical block size: 512 or 4096. It must not be smaller than what direct I/O on the
	// backing file can do, or the kernel falls back to buffered I/O.
	SectorBytes uint32
	// AutoClear lets the kernel detach the device at its last close or unmount: a process that dies between attaching
	// and mounting leaves nothing behind.
	AutoClear bool
	ReadOnly  bool
}

// File identifies a backing file.
type File struct{ Device, Inode uint64 }

// FileOf returns the identity of an open file.
func FileOf(f *os.File) (File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return File{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return File{Device: st.Dev, Inode: st.Ino}, nil
}

// Path is the device node of loop device number n.
func Path(n int) string { return "/dev/loop" + strconv.Itoa(n) }

// Table attaches files, each one once. It remembers what it attached and asks the kernel whether it is still so, since a
// device with AutoClear goes by itself. Only one process may attach the files of one Table's owner.
type Table struct {
	mu      sync.Mutex // entries, and their users
	entries map[File]*entry
	// free is held while a free device is looked for and taken: two that look at once get the same.
	free sync.Mutex
}

// entry of one file. Its own lock, so that a device that is slow to go holds up nobody else.
type entry struct {
	mu     sync.Mutex
	users  int
	number int // none: -1
}

// NewTable knows what is attached at this moment.
func NewTable() (*Table, error) {
	infos, err := List()
	if err != nil {
		return nil, err
	}
	t := &Table{entries: make(map[File]*entry, len(infos))}
	for _, i := range infos {
		t.entries[i.File] = &entry{number: i.Number}
	}
	return t, nil
}

func (t *Table) lock(id File) *entry {
	t.mu.Lock()
	e, ok := t.entries[id]
	if !ok {
		e = &entry{number: -1}
		t.entries[id] = e
	}
	e.users++
	t.mu.Unlock()
	e.mu.Lock()
	return e
}

func (t *Table) unlock(id File, e *entry) {
	attached := e.number >= 0
	e.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.users--; e.users == 0 && !attached {
		delete(t.entries, id)
	}
}

// Attach makes f the backing file of a loop device and returns the device, open. With AutoClear the caller keeps it
// open until it has mounted it. The same file again gives the same device, which stays attached once it was asked for
// without AutoClear; the other options count the first time only. It does not wait.
func (t *Table) Attach(f *os.File, o Options) (*os.File, error) {
	id, err := FileOf(f)
	if err != nil {
		return nil, err
	}
	e := t.lock(id)
	defer t.unlock(id, e)
	dev, attached, err := e.open(id)
	switch {
	case err != nil:
		return nil, err
	case attached && o.AutoClear:
		return dev, nil
	case attached:
		return dev, keep(dev)
	}
	t.free.Lock()
	defer t.free.Unlock()
	dev, n, err := configure(f, o)
	if err != nil {
		return nil, fmt.Errorf("attach %s to a loop device: %w", f.Name(), err)
	}
	e.number = n
	return dev, nil
}

// keep has the kernel leave an attached device attached at its last close.
func keep(dev *os.File) error {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err == nil && info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopSetStatus64(int(dev.Fd()), info)
	}
	if err != nil {
		return fmt.Errorf("keep %s attached: %w", dev.Name(), errors.Join(err, dev.Close()))
	}
	return nil
}

// Open returns the device that id is attached to, open; false when it is not attached. With an error that is not known.
func (t *Table) Open(id File) (*os.File, bool, error) {
	e := t.lock(id)
	defer t.unlock(id, e)
	return e.open(id)
}

// open forgets the device only when the kernel says that it is not id's: a file believed detached because this process had no
// descriptor left would be attached, mounted or deleted a second time.
func (e *entry) open(id File) (*os.File, bool, error) {
	if e.number < 0 {
		return nil, false, nil
	}
	dev, attached, err := openAttached(e.number, id)
	if err == nil && !attached {
		e.number = -1
	}
	return dev, attached, err
}

// openAttached opens the numbered device when id is attached to it. Asked while it is open: an open device with AutoClear
// cannot be detached by the kernel.
func openAttached(n int, id File) (*os.File, bool, error) {
	dev, err := os.OpenFile(Path(n), os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err == nil && (File{info.Device, info.Inode}) == id {
		return dev, true, nil
	}
	dev.Close()
	if err == nil || errors.Is(err, unix.ENXIO) {
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("status of %s: %w", Path(n), err)
}

// ErrHeld says that something has the device open or mounted; the kernel will detach it at the last close.
var ErrHeld = errors.New("the device is still open")

// probeGrace is how long Detach waits for a device that something else has open. Whoever probes block devices (udev,
// blkid, another instance that surveys its loop devices) has each open for a moment, and the kernel detaches at that
// close; no event tells of it. A mkfs that was killed with its parent can take longer on a busy disk.
const probeGrace = 2 * time.Second

// Detach lets id's device go: ErrHeld when something still has it after probeGrace. Not attached is success.
func (t *Table) Detach(id File) error {
	e := t.lock(id)
	defer t.unlock(id, e)
	dev, attached, err := e.open(id)
	if err != nil || !attached {
		return err
	}
	err = clear(dev)
	dev.Close()
	if err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause *= 2 {
		dev, held, err := e.open(id)
		if err != nil || !held {
			return err
		}
		dev.Close() // when it is the last one, the kernel detaches now
		if pause > probeGrace/2 {
			return fmt.Errorf("detach %s: %w", dev.Name(), ErrHeld)
		}
		time.Sleep(pause)
	}
}

// Detach lets a listed device go. When its number has been given to another file meanwhile, it is somebody else's and stays.
func Detach(i Info) error {
	dev, attached, err := openAttached(i.Number, i.File)
	if err != nil || !attached {
		return err
	}
	defer dev.Close()
	return clear(dev)
}

func clear(dev *os.File) error {
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", dev.Name(), err)
	}
	return nil
}

// SetCapacity makes the device as large as its file is now.
func SetCapacity(dev *os.File) error {
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("set the capacity of %s: %w", dev.Name(), err)
	}
	return nil
}

// configure takes a free device. Another process may take the one that LOOP_CTL_GET_FREE named: then there is another.
//
// boundary: held by the caller.
func configure(f *os.File, o Options) (*os.File, int, error) {
	control, err := os.OpenFile(controlPath, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w (load the kernel's loop module, or give the container %s)", ErrNoDevices, err, controlPath)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: o.SectorBytes}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if o.AutoClear {
		config.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	if o.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], f.Name())
	const races = 64
	for range races {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: ask for a free one: %w", ErrNoDevices, err)
		}
		dev, err := os.OpenFile(Path(n), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrNoDevices, err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, n, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, 0, fmt.Errorf("configure %s: %w", Path(n), err)
		}
	}
	return nil, 0, fmt.Errorf("lost the race for a free loop device %d times", races)
}
