package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// entry is a file, a directory or a link of the image.
type entry struct {
	mode fs.FileMode // with the type
	link string      // target of a symbolic link
	from string      // file on this machine; empty: text
	text string
}

// tree is a layer: entries by absolute path.
type tree map[string]entry

// choose puts together what contents.txt names, what that is linked with, and the descriptions and licences of the packages.
func choose(wanted []want, packages []*pkg) (tree, error) {
	c := &chooser{tree: skeleton(), owner: map[string]*pkg{}}
	for _, p := range packages {
		for file := range p.files {
			if _, twice := c.owner[file]; !twice {
				c.owner[file] = p
			}
		}
	}
	for _, w := range wanted {
		i := slices.IndexFunc(packages, func(p *pkg) bool { return p.name == w.name })
		if i < 0 {
			return nil, fmt.Errorf("there is no package %s", w.name)
		}
		for _, pattern := range w.patterns {
			found := false
			for file := range packages[i].files {
				if ok, _ := path.Match(pattern, file); ok {
					found = true
					if err := c.add(file); err != nil {
						return nil, err
					}
				}
			}
			if !found {
				return nil, fmt.Errorf("package %s has no file %s", w.name, pattern)
			}
		}
	}
	for _, p := range packages {
		if !p.chosen {
			continue
		}
		c.tree["/var/lib/dpkg/status.d/"+p.name] = entry{mode: 0o644, text: p.control}
		licence := "/usr/share/doc/" + p.name + "/copyright"
		if from, there := p.files[licence]; there {
			if fi, err := os.Stat(from); err == nil && fi.Mode().IsRegular() {
				c.tree[licence] = entry{mode: 0o644, from: from}
			}
		}
	}
	return c.tree, nil
}

// skeleton is what every root filesystem has.
func skeleton() tree {
	t := tree{
		"/bin": {mode: fs.ModeSymlink, link: "usr/bin"}, "/sbin": {mode: fs.ModeSymlink, link: "usr/sbin"},
		"/lib": {mode: fs.ModeSymlink, link: "usr/lib"}, "/lib64": {mode: fs.ModeSymlink, link: "usr/lib64"},
		"/usr/bin/sh":        {mode: fs.ModeSymlink, link: "dash"},
		"/etc/mtab":          {mode: fs.ModeSymlink, link: "/proc/mounts"},
		"/etc/passwd":        {mode: 0o644, text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"},
		"/etc/group":         {mode: 0o644, text: "root:x:0:\nnogroup:x:65534:\n"},
		"/etc/nsswitch.conf": {mode: 0o644, text: "passwd: files\ngroup: files\nhosts: files dns\n"},
		"/tmp":               {mode: fs.ModeDir | fs.ModeSticky | 0o777},
		"/root":              {mode: fs.ModeDir | 0o700},
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/var/lib", "/mnt", "/usr/lib64"} {
		t[dir] = entry{mode: fs.ModeDir | 0o755}
	}
	return t
}

type chooser struct {
	tree  tree
	owner map[string]*pkg
}

// add puts a file into the tree, with what its link leads to, and with the libraries that it needs.
func (c *chooser) add(file string) error {
	if _, there := c.tree[file]; there {
		return nil
	}
	p := c.owner[file]
	if p == nil {
		return fmt.Errorf("no package has %s", file)
	}
	p.chosen = true
	from := p.files[file]
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		c.tree[file] = entry{mode: fs.ModeSymlink, link: target}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(file), target)
		}
		return c.add(merged(path.Clean(target)))
	}
	// Nobody needs set-user-id here: whoever runs these is root, or must not be.
	c.tree[file] = entry{mode: fi.Mode().Perm(), from: from}
	return c.libraries(file, from)
}

// libraries adds what a program or library is linked with.
func (c *chooser) libraries(file, from string) error {
	b, err := elf.Open(from)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // no program
	}
	if err != nil {
		return err
	}
	defer b.Close()
	needed, err := b.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, segment := range b.Progs {
		if segment.Type == elf.PT_INTERP {
			loader, err := io.ReadAll(segment.Open())
			if err != nil {
				return err
			}
			if err := c.add(merged(strings.TrimRight(string(loader), "\x00"))); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	for _, library := range needed {
		found := false
		for _, dir := range directories(b.Machine) {
			if _, there := c.owner[dir+library]; there {
				found = true
				if err := c.add(dir + library); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				break
			}
		}
		if !found {
			return fmt.Errorf("%s is linked with %s, which no package has", file, library)
		}
	}
	return nil
}

// directories of libraries, in the loader's order.
func directories(m elf.Machine) []string {
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[m]
	return []string{"/usr/lib/" + triplet + "/", "/usr/lib/"}
}

// ourPrograms are the second layer.
func ourPrograms(dir string) (tree, error) {
	t := tree{}
	for _, program := range []string{"berth", "berth-flexvolume"} {
		from := path.Join(dir, program)
		b, err := elf.Open(from)
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", from, err)
		}
		needed, err := b.ImportedLibraries()
		b.Close()
		if err != nil || len(needed) > 0 {
			return nil, fmt.Errorf("program %s is linked with %v: build it with CGO_ENABLED=0 (%v)", from, needed, err)
		}
		t["/usr/local/bin/"+program] = entry{mode: 0o755, from: from}
	}
	return t, nil
}
