package mountpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxUsers bounds how many processes an error names.
const maxUsers = 5

// Users names the processes that keep the mount at target busy, as "3120 (psql)": those with their working directory,
// their root, their program or an open file there. Only processes that see the same path are found; one in another
// mount namespace has a mount of its own, which does not make this one busy.
func Users(target string) []string {
	return UsersOf(map[string]string{target: ""})[target]
}

// UsersOf is Users of each key of targets, in one look at the processes. Targets without users are not in the
// answer.
func UsersOf[T any](targets map[string]T) map[string][]string {
	users := map[string][]string{}
	processes, err := os.ReadDir("/proc")
	if err != nil || len(targets) == 0 {
		return users
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		used := usesOf(filepath.Join("/proc", p.Name()), targets)
		if len(used) == 0 {
			continue
		}
		name, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
		for target := range used {
			users[target] = append(users[target], fmt.Sprintf("%s (%s)", p.Name(), strings.TrimSpace(string(name))))
		}
	}
	return users
}

// usesOf finds the targets at or above what the process has open.
func usesOf[T any](proc string, targets map[string]T) map[string]bool {
	links := []string{"cwd", "root", "exe"}
	if fds, err := os.ReadDir(filepath.Join(proc, "fd")); err == nil {
		for _, fd := range fds {
			links = append(links, filepath.Join("fd", fd.Name()))
		}
	}
	used := map[string]bool{}
	for _, l := range links {
		path, err := os.Readlink(filepath.Join(proc, l))
		if err != nil || !filepath.IsAbs(path) {
			continue
		}
		for ; path != "/"; path = filepath.Dir(path) {
			if _, is := targets[path]; is {
				used[path] = true
			}
		}
	}
	return used
}

// busy is the error of an unmount that the processes prevent.
func busy(target string, err error) error {
	users := Users(target)
	switch {
	case len(users) == 0:
		return fmt.Errorf("unmount %s: %w", target, err)
	case len(users) > maxUsers:
		users = append(users[:maxUsers], fmt.Sprintf("%d more", len(users)-maxUsers))
	}
	return fmt.Errorf("unmount %s: %w: in use by process %s", target, err, strings.Join(users, ", "))
}
