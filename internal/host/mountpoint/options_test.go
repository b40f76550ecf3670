package mountpoint

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		options []string
		flags   uintptr
		data    string
	}{
		"none":                    {nil, 0, ""},
		"flags":                   {[]string{"ro", "noatime"}, unix.MS_RDONLY | unix.MS_NOATIME, ""},
		"the last one wins":       {[]string{"ro,rw", "noexec", "exec"}, 0, ""},
		"for the filesystem":      {[]string{"nouuid", "logbufs=8,noatime"}, unix.MS_NOATIME, "nouuid,logbufs=8"},
		"spaces and empty pieces": {[]string{" ro , ,data=journal"}, unix.MS_RDONLY, "data=journal"},
	} {
		if flags, data := parse(tc.options); flags != tc.flags || data != tc.data {
			t.Errorf("%s: %#x %q", name, flags, data)
		}
	}
}

func TestAttributes(t *testing.T) {
	for options, want := range map[string]unix.MountAttr{
		"":               {},
		"rw":             {},
		"ro":             {Attr_set: unix.MOUNT_ATTR_RDONLY},
		"nosuid,nodev":   {Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV},
		"noatime,noexec": {Attr_set: unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NOEXEC, Attr_clr: unix.MOUNT_ATTR__ATIME},
		"relatime":       {Attr_clr: unix.MOUNT_ATTR__ATIME},
	} {
		flags, _ := parse([]string{options})
		if got := attributes(flags & perMount); got != want {
			t.Errorf("%q: %+v, want %+v", options, got, want)
		}
	}
}
