package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// pkg is one package, unpacked.
type pkg struct {
	name    string
	control string            // its description: name, version, and where its source is
	files   map[string]string // absolute path in a merged /usr → file or link in the unpacked tree
	chosen  bool              // a file of it is in the image
}

// fetch downloads the packages and the libraries that they depend on, and unpacks them; in the order of their names.
func fetch(wanted []want, arch, debs, unpacked string) ([]*pkg, error) {
	for _, dir := range []string{debs, unpacked} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	named := make([]string, 0, len(wanted))
	for _, w := range wanted {
		named = append(named, w.name)
	}
	all, err := closure(named)
	if err != nil {
		return nil, err
	}
	versions, err := candidates(all, arch)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, v := range versions {
		if _, err := os.Stat(filepath.Join(debs, v.file())); err != nil {
			missing = append(missing, v.name+":"+v.arch+"="+v.version)
		}
	}
	if len(missing) > 0 {
		if _, err := tool(debs, "apt-get", append([]string{"-q", "download"}, missing...)...); err != nil {
			return nil, err
		}
	}
	var out []*pkg
	for _, v := range versions {
		p, err := unpack(filepath.Join(debs, v.file()), filepath.Join(unpacked, v.name))
		if err != nil {
			return nil, err
		}
		p.name = v.name
		out = append(out, p)
	}
	return out, nil
}

// closure are the packages and all libraries below them. Programs that Debian installs with them (an interpreter for xfs_scrub,
// debconf) are not wanted; a library that one of ours is linked with and that is not in a lib package is missed by choose.
func closure(named []string) ([]string, error) {
	args := append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}, named...)
	text, err := tool("", "apt-cache", args...)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(named)
	for line := range strings.Lines(text) {
		// The packages themselves stand at the line's begin; a provided name in <>.
		if name := strings.TrimSpace(line); name != "" && line[0] != ' ' && line[0] != '|' && line[0] != '<' && isLibrary(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// isLibrary goes by Debian's names.
func isLibrary(name string) bool { return strings.HasPrefix(name, "lib") || name == "zlib1g" }

// candidate is the version of a package that apt would install.
type candidate struct{ name, version, arch string }

// file is the name under which apt-get download keeps it.
func (c candidate) file() string {
	return c.name + "_" + strings.ReplaceAll(c.version, ":", "%3a") + "_" + c.arch + ".deb"
}

// candidates asks apt for versions. A package that only others provide has none, and is left out.
func candidates(names []string, arch string) ([]candidate, error) {
	text, err := tool("", "apt-cache", append([]string{"show", "--no-all-versions"}, qualified(names, arch)...)...)
	if err != nil {
		return nil, fmt.Errorf("%w; `apt-get update` may help", err)
	}
	var out []candidate
	for _, paragraph := range strings.Split(text, "\n\n") {
		c := candidate{}
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch key {
			case "Package":
				c.name = value
			case "Version":
				c.version = value
			case "Architecture":
				c.arch = value
			}
		}
		if c.name != "" {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b candidate) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.name == b.name }), nil
}

func qualified(names []string, arch string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		if !strings.Contains(n, ":") {
			n += ":" + arch
		}
		out = append(out, n)
	}
	return out
}

// unpack extracts a package and lists its files.
func unpack(deb, dir string) (*pkg, error) {
	if _, err := tool("", "dpkg-deb", "--extract", deb, dir); err != nil {
		return nil, err
	}
	control, err := tool("", "dpkg-deb", "--field", deb)
	if err != nil {
		return nil, err
	}
	p := &pkg{control: control, files: map[string]string{}}
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err == nil {
			p.files[merged("/"+rel)] = file
		}
		return err
	})
	return p, err
}

// merged is a path with /bin, /sbin and the /lib directories below /usr.
func merged(path string) string {
	for _, dir := range []string{"/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/"} {
		if strings.HasPrefix(path, dir) {
			return "/usr" + path
		}
	}
	return path
}

// tool runs a program of the host and returns what it says.
func tool(dir, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	var said, complained bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &said, &complained
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, args[0], err, strings.TrimSpace(complained.String()))
	}
	return said.String(), nil
}
