package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"berth.io/berth/test/deploy/chart"
	"berth.io/berth/test/deploy/roles"
)

// Places, below the project's directory.
const (
	chartDir      = "deploy/helm/berth"
	kustomizeDir  = "deploy/kubernetes"
	standaloneDir = "internal/standalone/manifests"
	documentation = "docs/kubernetes.md"
	tableBegin    = "<!-- made from test/deploy/roles.yaml by `make generate` -->\n"
	tableEnd      = "<!-- end -->\n"
	generated     = "# Made from deploy/helm/berth by `make generate`; edit the chart.\n"
)

// content is what files should have, by their paths below the project's directory.
type content map[string][]byte

// files are all that is generated.
func files(root string) (content, error) {
	out := content{}
	if err := out.definitions(root); err != nil {
		return nil, err
	}
	if err := out.kustomize(root); err != nil {
		return nil, err
	}
	return out, out.permissions(root)
}

// permissions writes the table of roles into its place in the documentation.
func (c content) permissions(root string) error {
	all, err := roles.Read(filepath.Join(root, "test/deploy/roles.yaml"))
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, documentation))
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), tableBegin)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		return fmt.Errorf("%s has no place for the table: %s … %s", documentation, tableBegin, tableEnd)
	}
	c[documentation] = []byte(before + tableBegin + roles.Table(all) + tableEnd + after)
	return nil
}

// definitions collects the CustomResourceDefinitions: those of snapshots from where `berth up` has them, ours from where they are made.
func (c content) definitions(root string) error {
	snapshots, err := filepath.Glob(filepath.Join(root, standaloneDir, "*snapshot.storage.k8s.io_*.yaml"))
	if err != nil {
		return err
	}
	ours, err := filepath.Glob(filepath.Join(root, kustomizeDir, "crds", "storage.berth.io_*.yaml"))
	if err != nil {
		return err
	}
	if len(snapshots) == 0 || len(ours) == 0 {
		return errors.New("the definitions are not there; run `go generate ./api/... ./internal/standalone`")
	}
	var names []string
	for _, file := range slices.Concat(snapshots, ours) {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := filepath.Base(file)
		names = append(names, name)
		c[path.Join(chartDir, "crds", name)] = text
		c[path.Join(kustomizeDir, "crds", name)] = text
	}
	slices.Sort(names)
	c[path.Join(kustomizeDir, "crds", "kustomization.yaml")] = kustomization(names)
	return nil
}

// kustomize renders the chart with its defaults but one, a file for each template.
func (c content) kustomize(root string) error {
	loaded, err := chart.Load(filepath.Join(root, chartDir))
	if err != nil {
		return err
	}
	// The one difference to Helm, which installs definitions before all else.
	rendered, err := chart.Render(loaded, "default", map[string]any{"snapshotClasses": map[string]any{"byJob": true}})
	if err != nil {
		return err
	}
	resources := []string{"crds"}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		resources = append(resources, name)
		c[path.Join(kustomizeDir, name)] = []byte(generated + tidy(rendered[name]))
	}
	c[path.Join(kustomizeDir, "kustomization.yaml")] = kustomization(resources)
	return nil
}

func kustomization(resources []string) []byte {
	return fmt.Appendf(nil, "%sapiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - %s\n", generated, strings.Join(resources, "\n  - "))
}

// tidy takes away the empty lines that templates leave.
func tidy(text string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimRight(line, " "); line != "" {
			out = append(out, line)
		}
	}
	return strings.TrimPrefix(strings.Join(out, "\n"), "---\n") + "\n"
}

// stale are the files that were generated once and are no more.
func (c content) stale(root string) ([]string, error) {
	var out []string
	for _, dir := range []string{kustomizeDir, path.Join(kustomizeDir, "crds"), path.Join(chartDir, "crds")} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			file := path.Join(dir, e.Name())
			if _, wanted := c[file]; !wanted && !e.IsDir() && strings.HasSuffix(file, ".yaml") {
				out = append(out, file)
			}
		}
	}
	return out, nil
}

// compare names what differs.
func (c content) compare(root string) error {
	differ, err := c.stale(root)
	if err != nil {
		return err
	}
	for file, want := range c {
		have, err := os.ReadFile(filepath.Join(root, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !bytes.Equal(have, want) {
			differ = append(differ, file)
		}
	}
	if len(differ) > 0 {
		slices.Sort(differ)
		return fmt.Errorf("not as they are generated; run `make generate`:\n  %s", strings.Join(differ, "\n  "))
	}
	return nil
}

func (c content) write(root string) error {
	stale, err := c.stale(root)
	if err != nil {
		return err
	}
	for _, file := range stale {
		if err := os.Remove(filepath.Join(root, file)); err != nil {
			return err
		}
	}
	for file, want := range c {
		name := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, want) {
			continue
		}
		if err := os.WriteFile(name, want, 0o644); err != nil {
			return err
		}
	}
	return nil
}
