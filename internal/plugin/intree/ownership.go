package intree

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
)

// access is how the pod uses a volume; it chooses the bits that fsGroup adds.
type access bool

const (
	readWrite access = false
	readOnly  access = true
)

// ownVolume gives everything in dir to the group, as upstream's SetVolumeOwnership does: the group gets read and write
// (or read), directories also the setgid bit. A nil group does nothing. Links are given away but not followed.
func ownVolume(dir string, group *int64, policy *v1.PodFSGroupChangePolicy, a access) error {
	if group == nil {
		return nil
	}
	if policy != nil && *policy == v1.FSGroupChangeOnRootMismatch && rootMatches(dir, *group, a) {
		return nil
	}
	return boundary.Do("intree/own-volume", func() error {
		return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if err := os.Lchown(path, -1, int(*group)); err != nil {
				return fmt.Errorf("fsGroup %d: %w", *group, err)
			}
			if e.Type()&fs.ModeSymlink != 0 {
				return nil
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			if err := os.Chmod(path, info.Mode()|groupBits(e.IsDir(), a)); err != nil {
				return fmt.Errorf("fsGroup %d: %w", *group, err)
			}
			return nil
		})
	})
}

func groupBits(dir bool, a access) fs.FileMode {
	bits := fs.FileMode(0o660)
	if a == readOnly {
		bits = 0o440
	}
	if dir {
		bits |= 0o110 | fs.ModeSetgid
	}
	return bits
}

// rootMatches: fsGroupChangePolicy OnRootMismatch looks at the root directory alone.
func rootMatches(dir string, group int64, a access) bool {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	bits := groupBits(true, a)
	return ok && int64(st.Gid) == group && info.Mode()&bits == bits
}

// soleUser is the user that all containers of the pod run as, nil when they differ or none is named (upstream's FsUserFrom).
func soleUser(pod *v1.Pod) *int64 {
	var user *int64
	differ := false
	visit := func(c *v1.SecurityContext) {
		u := (*int64)(nil)
		if pod.Spec.SecurityContext != nil {
			u = pod.Spec.SecurityContext.RunAsUser
		}
		if c != nil && c.RunAsUser != nil {
			u = c.RunAsUser
		}
		if u == nil || user != nil && *user != *u {
			differ = true
			return
		}
		user = u
	}
	for i := range pod.Spec.InitContainers {
		visit(pod.Spec.InitContainers[i].SecurityContext)
	}
	for i := range pod.Spec.Containers {
		visit(pod.Spec.Containers[i].SecurityContext)
	}
	for i := range pod.Spec.EphemeralContainers {
		visit(pod.Spec.EphemeralContainers[i].SecurityContext)
	}
	if differ {
		return nil
	}
	return user
}
