package fsmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/command"
)

// shareDeadline bounds one try to mount a share. A server that is down is asked again by the host's next call.
const shareDeadline = 45 * time.Second

// NFS is an export of an NFS server, or a directory of it.
type NFS struct {
	server, share, subPath string
	options                []string
	readOnly               bool
}

// ParseNFS checks what a user wrote: share with or without its leading slash, subPath relative to it, options as in
// /etc/fstab. The errors are ErrName and ErrOption.
func ParseNFS(server, share, subPath, options string, readOnly bool) (*NFS, error) {
	n := &NFS{readOnly: readOnly}
	var err error
	if n.server, err = parseServer(server); err != nil {
		return nil, err
	}
	if strings.Contains(n.server, ":") {
		n.server = "[" + n.server + "]"
	}
	if n.share, err = parseShare("share", share); err != nil {
		return nil, err
	}
	if n.subPath, err = parseSubPath(subPath); err != nil {
		return nil, err
	}
	if n.options, err = parseOptions(options, nfsOptions); err != nil {
		return nil, err
	}
	n.readOnly = n.readOnly || lastOf(n.options, "ro", "rw") == "ro"
	return n, nil
}

// Source is the export as /proc/mounts has it, the directory included.
func (n *NFS) Source() string { return n.server + ":" + path.Join(n.share, n.subPath) }

// Mount mounts it at the directory below root, which is made where it is missing. Mounted already is success; something
// else there is an error.
func (n *NFS) Mount(ctx context.Context, root, below string) error {
	return mountShare(ctx, root, below, n.same, func(ctx context.Context, t *Target) (*os.File, error) {
		return detachedShare(ctx, t.path, n.subPath, attributes(n.readOnly), []int64{unix.NFS_SUPER_MAGIC}, func(dir string) error {
			return n.run(ctx, dir)
		})
	})
}

// run asks mount.nfs, which knows how to find a version that both speak. It takes the two paths first, options after them. It may
// not try for minutes (retry=0), nor write to /etc/mtab (-n): a table of mounts that are in another namespace.
func (n *NFS) run(ctx context.Context, dir string) error {
	options := append(slices.DeleteFunc(slices.Clone(n.options), accessOption), "retry=0")
	_, err := command.Output(ctx, shareDeadline, nil, "mount.nfs", n.server+":"+n.share, dir, "-n", "-o", strings.Join(options, ","))
	return n.failed(err)
}

func (n *NFS) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, command.ErrMissing):
		return fmt.Errorf("%w: install the package nfs-common (nfs-utils)", err)
	}
	return fmt.Errorf("mount %s:%s: %w", n.server, n.share, err)
}

// same says whether a mount that is there already is this one.
func (n *NFS) same(m *Mount) error {
	if m.FSType != "nfs" && m.FSType != "nfs4" || path.Clean(m.Source) != n.Source() {
		return occupied(m, n.Source())
	}
	return sameAccess(m, n.readOnly)
}

// accessOption: whether a share may be written to is said of the mount at the directory. The filesystem itself is one for all mounts of
// the share on this machine; made read-only by the first, it would be so for those that come later (NFS, sharecache).
func accessOption(o string) bool { return o == "ro" || o == "rw" }

// lastOf is the last of the options that is one of the names.
func lastOf(options []string, names ...string) string {
	last := ""
	for _, o := range options {
		if slices.Contains(names, o) {
			last = o
		}
	}
	return last
}
