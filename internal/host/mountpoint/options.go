package mountpoint

import (
	"strings"

	"golang.org/x/sys/unix"
)

// set and cleared flags of the options that the kernel takes as flags (mount(8), "filesystem-independent").
var flagOptions = map[string]struct{ set, clear uintptr }{
	"defaults":      {},
	"rw":            {0, unix.MS_RDONLY},
	"ro":            {unix.MS_RDONLY, 0},
	"suid":          {0, unix.MS_NOSUID},
	"nosuid":        {unix.MS_NOSUID, 0},
	"dev":           {0, unix.MS_NODEV},
	"nodev":         {unix.MS_NODEV, 0},
	"exec":          {0, unix.MS_NOEXEC},
	"noexec":        {unix.MS_NOEXEC, 0},
	"async":         {0, unix.MS_SYNCHRONOUS},
	"sync":          {unix.MS_SYNCHRONOUS, 0},
	"dirsync":       {unix.MS_DIRSYNC, 0},
	"atime":         {0, unix.MS_NOATIME},
	"noatime":       {unix.MS_NOATIME, 0},
	"diratime":      {0, unix.MS_NODIRATIME},
	"nodiratime":    {unix.MS_NODIRATIME, 0},
	"relatime":      {unix.MS_RELATIME, 0},
	"norelatime":    {0, unix.MS_RELATIME},
	"strictatime":   {unix.MS_STRICTATIME, 0},
	"nostrictatime": {0, unix.MS_STRICTATIME},
	"lazytime":      {unix.MS_LAZYTIME, 0},
	"nolazytime":    {0, unix.MS_LAZYTIME},
	"silent":        {unix.MS_SILENT, 0},
	"loud":          {0, unix.MS_SILENT},
	"nosymfollow":   {unix.MS_NOSYMFOLLOW, 0},
}

// perMount are the flags that belong to one mount, not to its filesystem.
const perMount = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME |
	unix.MS_RELATIME | unix.MS_NOSYMFOLLOW

// attributes are flags in the words of mount_setattr(2).
func attributes(flags uintptr) (a unix.MountAttr) {
	for flag, attr := range map[uintptr]uint64{
		unix.MS_RDONLY:      unix.MOUNT_ATTR_RDONLY,
		unix.MS_NOSUID:      unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV:       unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC:      unix.MOUNT_ATTR_NOEXEC,
		unix.MS_NODIRATIME:  unix.MOUNT_ATTR_NODIRATIME,
		unix.MS_NOSYMFOLLOW: unix.MOUNT_ATTR_NOSYMFOLLOW,
	} {
		if flags&flag != 0 {
			a.Attr_set |= attr
		}
	}
	// How access times are kept is one field of several bits: to set it is to clear it first. RELATIME is 0.
	if flags&(unix.MS_NOATIME|unix.MS_RELATIME) != 0 {
		a.Attr_clr |= unix.MOUNT_ATTR__ATIME
		if flags&unix.MS_NOATIME != 0 {
			a.Attr_set |= unix.MOUNT_ATTR_NOATIME
		}
	}
	return a
}

func parse(options []string) (flags uintptr, data string) {
	var rest []string
	for _, list := range options {
		for o := range strings.SplitSeq(list, ",") {
			o = strings.TrimSpace(o)
			if f, ok := flagOptions[o]; ok {
				flags = flags&^f.clear | f.set
			} else if o != "" {
				rest = append(rest, o)
			}
		}
	}
	return flags, strings.Join(rest, ",")
}
