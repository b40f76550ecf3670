package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// Links in a volume's directory: the node that it is attached to, the path where it is staged.
const (
	publishedLink = "published"
	stagedLink    = "staged"
)

// onNode is where one volume is on this node. It is a cache: recover builds it from the kernel's mounts.
type onNode struct {
	staged string
	// readOnly: so was it mounted, so that a later change means that the filesystem gave up.
	readOnly bool
	targets  []string
}

// recover finds what a former process staged and published.
func (b *Backend) recover() error {
	loops, err := loop.List()
	if err != nil {
		return err
	}
	mounts, err := mountpoint.List()
	if err != nil {
		return err
	}
	byDisk := map[string]loop.Info{}
	for _, l := range loops {
		byDisk[l.Backing] = l
	}
	for _, v := range b.o.Pool.List() {
		link := filepath.Join(b.o.Pool.Directory(v.ID), stagedLink)
		staged, _ := os.Readlink(link)
		l, attached := byDisk[b.o.Pool.Disk(v.ID)]
		if !attached {
			if staged == "" {
				continue
			}
			// Noted and never attached, or unmounted by somebody else.
			if err := boundary.Do("backend-block/drop-stale-staged", func() error { return os.Remove(link) }); err != nil {
				return err
			}
			continue
		}
		n := &onNode{staged: staged}
		for _, m := range mounts {
			if l.ShownBy(m) && m.Path != staged {
				n.targets = append(n.targets, m.Path)
			}
		}
		b.nodes[v.ID] = n
		if staged != "" {
			b.noteReadOnly(v.ID, staged)
		}
	}
	return nil
}

// noteStaged writes down, before anything is mounted, where the volume is going to be.
func (b *Backend) noteStaged(h *hold.Hold, r backend.StageRequest) error {
	h.Step("noting where it is staged")
	link := filepath.Join(b.o.Pool.Directory(r.ID), stagedLink)
	err := boundary.Do("backend-block/note-staged", func() error {
		err := os.Symlink(r.Path, link)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if at, _ := os.Readlink(link); at == r.Path {
			return nil
		}
		// Left by a stage elsewhere that is not there any more (Stage has asked).
		if err := os.Remove(link); err != nil {
			return err
		}
		return os.Symlink(r.Path, link)
	})
	if err != nil {
		return fmt.Errorf("note that volume %s is staged at %s: %w", r.ID, r.Path, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.node(r.ID).staged = r.Path
	return nil
}

// node returns the entry of id; b.mu is held.
func (b *Backend) node(id string) *onNode {
	n, ok := b.nodes[id]
	if !ok {
		n = &onNode{}
		b.nodes[id] = n
	}
	return n
}

func (b *Backend) noteReadOnly(id, path string) {
	ro, err := mountpoint.ReadOnly(path)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.node(id).readOnly = ro && err == nil
}

func (b *Backend) noteTarget(id, target string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.node(id); !slices.Contains(n.targets, target) {
		n.targets = append(n.targets, target)
	}
}

func (b *Backend) forgetTarget(id, target string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.nodes[id]; ok {
		n.targets = slices.DeleteFunc(n.targets, func(t string) bool { return t == target })
	}
}

func (b *Backend) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.nodes, id)
}

func (b *Backend) stagedAt(id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.nodes[id]; ok {
		return n.staged
	}
	return ""
}

// liveTargets are the targets at which the volume is mounted in truth: one that somebody unmounted by hand is none.
func (b *Backend) liveTargets(id string) []string {
	b.mu.Lock()
	var targets []string
	if n, ok := b.nodes[id]; ok {
		targets = slices.Clone(n.targets)
	}
	b.mu.Unlock()
	return slices.DeleteFunc(targets, func(t string) bool {
		is, err := mountpoint.Is(t)
		return err == nil && !is
	})
}

// inUse is a place where the volume is published or staged; empty when there is none. A volume that was noted as staged and
// is not attached is not: staging failed, or somebody unmounted it.
func (b *Backend) inUse(id string) string {
	if t := b.liveTargets(id); len(t) > 0 {
		return t[0]
	}
	at := b.stagedAt(id)
	if at == "" {
		return ""
	}
	dev, attached, err := b.openLoop(id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !attached {
		return ""
	}
	if err == nil {
		dev.Close()
	}
	return at // when nobody can say, too
}

// real is path with the symbolic links of its parents followed, as far as they are there: the path by which the kernel lists a
// mount. The last element stays as it is.
func real(path string) string {
	if path == "" {
		return ""
	}
	missing := filepath.Base(path)
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if found, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(found, missing)
		}
		if dir == filepath.Dir(dir) {
			return path
		}
		missing = filepath.Join(filepath.Base(dir), missing)
	}
}
