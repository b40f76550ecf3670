// image writes the container image as an OCI archive, without a daemon and without asking a registry: two layers, first what it
// takes from Debian's packages (contents.txt), then Berth's programs, so that a new version shares the first with the old one.
//
// The same packages and programs make the same bytes. scripts/image.sh builds the programs and calls it:
//
//	image -programs DIR -version V -out FILE NAME...
//
// It runs apt-get download and dpkg-deb of a Debian host, and needs no root.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

func main() {
	programs := flag.String("programs", "", "directory with berth and berth-flexvolume")
	version := flag.String("version", "dev", "version, for the image's labels")
	out := flag.String("out", "", "archive to write")
	arch := flag.String("arch", runtime.GOARCH, "architecture, as Go and Debian both call it")
	contents := flag.String("contents", "contents.txt", "what to take of which package")
	debs := flag.String("packages", "", "directory that keeps downloaded packages (default: one that is removed)")
	flag.Parse()
	if *programs == "" || *out == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: image -programs DIR -out FILE [-version V] [-packages DIR] NAME...")
		os.Exit(2)
	}
	if err := run(*programs, *version, *out, *arch, *contents, *debs, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(programs, version, out, arch, contents, debs string, names []string) error {
	wanted, err := readContents(contents)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if debs == "" {
		debs = filepath.Join(work, "packages")
	}
	packages, err := fetch(wanted, arch, debs, filepath.Join(work, "unpacked"))
	if err != nil {
		return err
	}
	system, err := choose(wanted, packages)
	if err != nil {
		return err
	}
	ours, err := ourPrograms(programs)
	if err != nil {
		return err
	}
	return write(work, out, arch, version, names, system, ours)
}
