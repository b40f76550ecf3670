package discovery

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/host/mountpoint"
)

// entry is what stands at one path of a discovery directory.
type entry struct {
	class string
	file  string // its name in the directory
	path  string // for pods and volumes: hostDir/file
	look  string // for us: mountDir/file in a container, else path

	absent   bool // nothing is there, or a directory whose disk is not mounted
	device   bool
	disk     string // its identity; "" for a directory that has no mark yet
	cluster  string // whose mark it has; "" without one
	capacity int64  // bytes, not rounded
	data     string // names something in it that is a user's; "" when it is empty
	problem  error  // why it can't be served as it is
}

func (e *entry) mode() v1.PersistentVolumeMode {
	if e.device {
		return v1.PersistentVolumeBlock
	}
	return v1.PersistentVolumeFilesystem
}

var errNotMounted = errors.New("it is a directory and nothing is mounted there: mount the disk, or bind a directory there (mount --bind DIR PATH); " +
	"a plain directory is not offered, since it is what is left when a disk's mount fails")

// inspect looks at an entry; with contents it reads whether data is in it, which takes some reads of the disk.
func (e *entry) inspect(class Class, contents bool) {
	st, err := os.Stat(e.look) // a device is mostly a link to its node
	if err != nil {
		e.absent, e.problem = gone(err), err
		return
	}
	switch {
	case st.IsDir():
		e.inspectDirectory(class, contents)
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		e.device = true
		e.inspectDevice(contents)
	default:
		e.problem = fmt.Errorf("it is neither a directory nor a block device")
	}
}

// lookWithin bounds the look at one disk: one that fails, or a server that is away, must not hold up the others.
var lookWithin = 10 * time.Second

// look inspects an entry with a deadline. What the kernel does not answer goes on in the background, and is not asked again
// until it has.
func (d *Discovery) look(e *entry, inspect func(*entry)) {
	if earlier := d.stuck[e.look]; earlier != nil {
		select {
		case <-earlier:
			delete(d.stuck, e.look)
		default:
			e.problem = errNoAnswer
			return
		}
	}
	looked, ended := *e, make(chan struct{})
	go func() {
		defer close(ended)
		inspect(&looked)
	}()
	deadline := time.NewTimer(lookWithin)
	defer deadline.Stop()
	select {
	case <-ended:
		*e = looked
	case <-deadline.C:
		d.stuck[e.look], e.problem = ended, errNoAnswer
		go func() {
			<-ended
			d.Wake()
		}()
	}
}

var errNoAnswer = fmt.Errorf("it does not answer for %s: look at the disk and at the kernel's log", lookWithin)

func (e *entry) inspectDevice(contents bool) {
	f, d, err := openDevice(e.look, os.O_RDONLY)
	if err != nil {
		e.absent, e.problem = gone(err), err
		return
	}
	defer f.Close()
	e.disk, e.capacity = d.id, d.size
	if d.size == 0 {
		e.problem = errors.New("the device has no size: a drive without a medium, or a loop device without a file")
		return
	}
	if contents {
		e.data, e.problem = d.data(f)
	}
}

func (e *entry) inspectDirectory(class Class, withContents bool) {
	if class.Mode == v1.PersistentVolumeBlock {
		e.problem = errors.New("it is a directory, and volumeMode Block wants a device")
		return
	}
	root, err := openRoot(e.look)
	if err != nil {
		e.absent, e.problem = errors.Is(err, errNotMounted), err
		return
	}
	defer root.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		e.problem = fmt.Errorf("statfs: %w", err)
		return
	}
	e.capacity = int64(st.Blocks) * st.Bsize // what the original counts: free or not
	m, marked, err := readMark(root)
	if err != nil {
		e.problem = err
		return
	}
	if marked {
		e.disk, e.cluster = m.ID, m.Cluster
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		e.problem = errors.New("it is mounted read-only")
		return
	}
	if withContents {
		if e.data, err = contents(root); err != nil {
			e.problem = err
		}
	}
}

// openRoot opens the directory at path when it is the root of a mount, and not through a link: a link would lead the
// wiping of one directory to another.
func openRoot(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSymlink != 0 {
		to, _ := os.Readlink(path)
		return nil, fmt.Errorf("it is a link to the directory %s: links are for devices; bind the directory there instead (mount --bind %s %s)", to, to, path)
	}
	mounted, err := mountpoint.Is(path)
	if err != nil {
		return nil, err
	}
	if !mounted {
		return nil, errNotMounted
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	root := os.NewFile(uintptr(fd), path)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st); err != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, errors.Join(errNotMounted, err, root.Close()) // unmounted in between
	}
	return root, nil
}

// entriesIn lists a class's directory. Entries that the pattern leaves out are not looked at.
func entriesIn(name string, class Class, inContainer bool) ([]*entry, error) {
	dir := class.HostDir
	if inContainer {
		dir = class.MountDir
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []*entry
	for _, f := range list {
		if fits, err := filepath.Match(class.NamePattern, f.Name()); err != nil || !fits {
			continue
		}
		found = append(found, &entry{class: name, file: f.Name(), path: filepath.Join(class.HostDir, f.Name()), look: filepath.Join(dir, f.Name())})
	}
	return found, nil
}
