package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// maxUsers bounds how many processes an error names.
const maxUsers = 5

// containersWith names the processes in other mount namespaces that see the filesystem mounted at path, one for each
// namespace, as "3120 (psql)". Services with a namespace of their own (PrivateTmp=) have copies of all the host's
// mounts, at the same places; a container has it at a place of its own.
func (s *Service) containersWith(path string) ([]string, error) {
	shown, err := shownAt(path)
	if shown == nil || err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return nil, err
	}
	host, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	all, err := s.records.all()
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		own[m.Path] = true
	}
	data := filepath.Dir(string(s.records))
	seen := map[string]bool{host: true}
	var users []string
	for _, link := range processes {
		ns, err := os.Readlink(link)
		if err != nil || seen[ns] {
			continue // ended, or looked at
		}
		seen[ns] = true
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		mounts, err := mountsOf(pid)
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			if m.Major == shown.Major && m.Minor == shown.Minor && !below(m.Mountpoint, data) && !own[m.Mountpoint] {
				comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				users = append(users, fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(comm))))
				break
			}
		}
		if len(users) == maxUsers {
			break
		}
	}
	return users, nil
}

// noContainers refuses while a container has a volume: its mount is in a namespace of its own, where nothing here can
// take it away, and keeps the volume's device and the pool busy.
func (s *Service) noContainers(ctx context.Context) error {
	all, err := s.List(ctx, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range all {
		if v.Path == "" || !slices.ContainsFunc(v.Callers, func(c Caller) bool { return c.By == Engine }) {
			continue
		}
		users, err := s.containersWith(v.Path)
		if len(users) > 0 {
			err = fmt.Errorf("volume %s is in use by process %s; stop the container", v.Name, strings.Join(users, ", "))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mountsOf reads the mounts that a process sees; none when it has ended.
func mountsOf(pid int) ([]*mountinfo.Info, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, nil //nolint:nilerr // it ended while it was read
	}
	return mounts, nil
}
