package main

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// want is what is taken of one package: patterns of absolute paths, in a merged /usr.
type want struct {
	name     string
	patterns []string
}

// readContents reads contents.txt: PACKAGE PATTERN... on each line. A package may have several lines.
func readContents(file string) ([]want, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []want
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) == 1 {
			return nil, fmt.Errorf("%s:%d: package %s without files", file, n, fields[0])
		}
		for _, p := range fields[1:] {
			if _, err := path.Match(p, "/"); err != nil || !path.IsAbs(p) || path.Clean(p) != p {
				return nil, fmt.Errorf("%s:%d: %q is no pattern of an absolute path", file, n, p)
			}
		}
		i := slices.IndexFunc(out, func(w want) bool { return w.name == fields[0] })
		if i < 0 {
			out = append(out, want{name: fields[0]})
			i = len(out) - 1
		}
		out[i].patterns = append(out[i].patterns, fields[1:]...)
	}
	if len(out) == 0 && lines.Err() == nil {
		return nil, fmt.Errorf("%s names no package", file)
	}
	return out, lines.Err()
}
