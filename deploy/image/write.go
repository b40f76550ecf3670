package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// write makes the image and archives it. Times are zero everywhere: the archive depends on its contents alone.
func write(work, out, arch, version string, names []string, layers ...tree) error {
	refs, err := references(names)
	if err != nil {
		return err
	}
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{Architecture: arch, OS: "linux", RootFS: v1.RootFS{Type: "layers"}, Config: v1.Config{
		Entrypoint: []string{"/usr/local/bin/berth"},
		Env:        []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":   "berth",
			"org.opencontainers.image.version": version,
		},
	}})
	if err != nil {
		return err
	}
	for i, t := range layers {
		file := filepath.Join(work, fmt.Sprintf("layer%d.tar", i))
		if err := t.archive(file); err != nil {
			return err
		}
		layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(9))
		if err != nil {
			return err
		}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: []string{"Debian's packages", "berth " + version}[min(i, 1)]}}); err != nil {
			return err
		}
	}
	dir := filepath.Join(work, "layout")
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if err := l.AppendImage(image, layout.WithAnnotations(map[string]string{
			"io.containerd.image.name":          ref.full,
			"org.opencontainers.image.ref.name": ref.tag,
		})); err != nil {
			return err
		}
	}
	archived := filepath.Join(work, "image.tar")
	if err := fromDir(dir).archive(archived); err != nil {
		return err
	}
	if err := os.Rename(archived, out); err != nil {
		return err
	}
	return report(out, image, refs)
}

func report(out string, image v1.Image, refs []reference) error {
	fi, err := os.Stat(out)
	if err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, r := range refs {
		fmt.Printf("  %s@%s, %.1f MB\n", r.full, digest, float64(fi.Size())/1e6)
	}
	for _, layer := range layers {
		size, err := layer.Size()
		if err != nil {
			return err
		}
		id, err := layer.Digest()
		if err != nil {
			return err
		}
		fmt.Printf("    layer %s, %.1f MB\n", id, float64(size)/1e6)
	}
	return nil
}

// reference is an image's name as container runtimes spell it out: berth:dev is docker.io/library/berth:dev to them.
type reference struct{ full, tag string }

func references(names []string) ([]reference, error) {
	var out []reference
	for _, n := range names {
		t, err := name.NewTag(n)
		if err != nil {
			return nil, err
		}
		registry := t.RegistryStr()
		if registry == name.DefaultRegistry {
			registry = "docker.io"
		}
		out = append(out, reference{registry + "/" + t.RepositoryStr() + ":" + t.TagStr(), t.TagStr()})
	}
	return out, nil
}

// fromDir is a directory's tree.
func fromDir(dir string) tree {
	t := tree{}
	_ = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, file)
		if err == nil && !d.IsDir() {
			t["/"+filepath.ToSlash(rel)] = entry{mode: 0o644, from: file}
		}
		return err
	})
	return t
}

// archive writes the tree as a tar file, parents before children, owned by root, of the year 1970.
func (t tree) archive(file string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.Close(); err == nil {
			err = closed
		}
	}()
	full := maps.Clone(t)
	for p := range t {
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			if _, there := full[dir]; !there {
				full[dir] = entry{mode: fs.ModeDir | 0o755}
			}
		}
	}
	w := tar.NewWriter(f)
	for _, p := range slices.Sorted(maps.Keys(full)) {
		if err := full[p].writeTo(w, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return w.Close()
}

func (e entry) writeTo(w *tar.Writer, at string) error {
	h := &tar.Header{Name: at[1:], Mode: int64(e.mode.Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if e.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		return w.WriteHeader(h)
	case e.mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
		return w.WriteHeader(h)
	}
	var content io.Reader = bytes.NewReader([]byte(e.text))
	h.Typeflag, h.Size = tar.TypeReg, int64(len(e.text))
	if e.from != "" {
		f, err := os.Open(e.from)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		content, h.Size = f, fi.Size()
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}
