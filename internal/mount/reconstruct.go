package mount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// found is what the node's directories show at start.
type found struct {
	pods      []types.UID
	published []foundUse
	staged    []foundVolume
	broken    []brokenDir
}

type foundVolume struct {
	plugin.Reconstructed
	plugin plugin.Mounter
}

type foundUse struct {
	foundVolume
	pod types.UID
}

// brokenDir is a volume's directory that tells too little to undo it as its plugin would.
type brokenDir struct {
	pod      types.UID
	path     string
	specName string
	mode     v1.PersistentVolumeMode
	// plugin is nil when none of that name is there.
	plugin plugin.Mounter
	err    error
}

// scan reads the directories of pods and the staged volumes. It changes nothing.
func (m *Manager) scan() found { return scan(m.opts.DataDir, m.opts.Plugins) }

func scan(dataDir string, plugins *plugin.Registry) found {
	var f found
	for _, uid := range entries(podsDir(dataDir)) {
		pod := types.UID(uid)
		f.pods = append(f.pods, pod)
		dir := podDir(dataDir, pod)
		f.scanVolumes(pod, filepath.Join(dir, "volumes"), v1.PersistentVolumeFilesystem, plugins)
		f.scanVolumes(pod, filepath.Join(dir, "volumeDevices"), v1.PersistentVolumeBlock, plugins)
	}
	for _, p := range plugins.All() {
		l, ok := p.(plugin.StagedLister)
		if !ok {
			continue
		}
		staged, err := l.StagedVolumes()
		if err != nil {
			f.broken = append(f.broken, brokenDir{err: fmt.Errorf("list the staged volumes of %s: %w", p.Name(), err)})
		}
		for _, r := range staged {
			if r.Name == "" { // a leftover has no volume's name: its path stands for it
				r.Name = v1.UniqueVolumeName(p.Name() + "/leftover:" + r.GlobalPath)
			}
			f.staged = append(f.staged, foundVolume{r, p.(plugin.Mounter)})
		}
	}
	return f
}

func (f *found) scanVolumes(pod types.UID, dir string, mode v1.PersistentVolumeMode, plugins *plugin.Registry) {
	for _, escaped := range entries(dir) {
		p, known := plugins.ByName(plugin.UnescapeName(escaped))
		mounter, mounts := p.(plugin.Mounter)
		for _, name := range entries(filepath.Join(dir, escaped)) {
			path := filepath.Join(dir, escaped, name)
			if !known || !mounts {
				f.broken = append(f.broken, brokenDir{pod: pod, path: path, mode: mode, err: fmt.Errorf("%s: no plugin of that name", path)})
				continue
			}
			specName := plugin.UnescapeName(name)
			r, err := mounter.Reconstruct(pod, specName, mode)
			if err != nil {
				f.broken = append(f.broken, brokenDir{pod, path, specName, mode, mounter, fmt.Errorf("%s: %w", path, err)})
				continue
			}
			f.published = append(f.published, foundUse{foundVolume{r, mounter}, pod})
		}
	}
}

// entries lists a directory; a missing one is empty.
func entries(dir string) []string {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	out := make([]string, 0, len(all))
	for _, e := range all {
		out = append(out, e.Name())
	}
	return out
}

// adopt takes over what was found. All of it is uncertain: what pods want is mounted again, which the plugins take as
// a repetition, and the rest is unmounted once the pods are known.
func (m *Manager) adopt(f found) {
	for _, uid := range f.pods {
		m.entry(uid)
	}
	for _, r := range f.published {
		m.metrics.reconstructed.Inc()
		v := m.adoptVolume(r.foundVolume)
		e := m.entry(r.pod)
		u := &use{volume: v, pod: r.pod, specName: r.SpecName, mode: r.Mode, path: r.Path, state: uncertain}
		u.order = e.order
		v.uses[r.pod] = u
		e.uses[u] = true
	}
	for _, r := range f.staged {
		v := m.adoptVolume(r)
		v.stages, v.stage, v.globalPath = true, uncertain, r.GlobalPath
	}
	for _, b := range f.broken {
		m.metrics.reconstructed.Inc()
		m.metrics.reconstructedErrors.Inc()
		m.log.Warn("a volume's directory can't be read back", "err", b.err)
		if b.path != "" {
			e := m.entry(b.pod)
			e.broken = append(e.broken, b)
		}
	}
}

func (m *Manager) adoptVolume(r foundVolume) *volume {
	v := m.volumes[r.Name]
	if v == nil {
		v = &volume{
			name: r.Name, plugin: r.plugin, specName: r.SpecName, mode: r.Mode,
			attachable: r.Attachable, lane: r.Driver, uses: map[types.UID]*use{},
		}
		if v.lane == "" {
			v.lane = r.plugin.Name()
		}
		m.volumes[r.Name] = v
	}
	if _, lists := r.plugin.(plugin.StagedLister); !lists && r.GlobalPath != "" {
		// A plugin that can't list what is staged: assume that it is.
		v.stages, v.stage, v.globalPath = true, uncertain, r.GlobalPath
	}
	return v
}

// adoptAttached takes over what this node has attached by itself.
func (m *Manager) adoptAttached(ctx context.Context) {
	if m.opts.AttachOnController {
		return
	}
	for _, p := range m.opts.Plugins.All() {
		a, attaches := p.(plugin.Attacher)
		mounter, mounts := p.(plugin.Mounter)
		if !attaches || !mounts {
			continue
		}
		attached, err := a.Attached(ctx)
		if err != nil {
			m.log.Warn("what is attached can't all be listed", "plugin", p.Name(), "err", err)
		}
		for _, at := range attached {
			if string(at.Node) != m.opts.Node {
				continue
			}
			v := m.volumes[at.Name]
			if v == nil {
				v = &volume{name: at.Name, plugin: mounter, uses: map[types.UID]*use{}, lane: plugin.MemberOf(p, string(at.Name))}
				m.volumes[at.Name] = v
			}
			if at.Volume != nil {
				v.latest, v.specName, v.lane = at.Volume, at.Volume.SpecName(), driverOf(mounter, at.Volume)
			}
			v.attachable, v.attach, v.devicePath = true, present, at.DevicePath
			if at.Uncertain {
				v.attach = uncertain
			}
		}
	}
}

// cleanBroken unmounts and removes directories whose volumes could not be reconstructed.
func (m *Manager) cleanBroken(ctx context.Context, broken []brokenDir) {
	for _, b := range broken {
		m.metrics.forceCleaned.Inc()
		if err := b.clean(ctx); err != nil {
			m.metrics.forceCleanedErrors.Inc()
			m.log.Warn("a volume's directory that can't be read back can't be removed either", "path", b.path, "err", err)
		}
	}
}

// clean lets the plugin undo what a crash left before the volume could be told from it, and otherwise unmounts.
func (b brokenDir) clean(ctx context.Context) error {
	if b.plugin != nil {
		r := plugin.UnpublishRequest{PodUID: b.pod, SpecName: b.specName, Mode: b.mode}
		if err := b.plugin.Unpublish(ctx, r); err == nil {
			return nil
		}
	}
	if err := unmountBelow(b.path); err != nil {
		return err
	}
	return removeEmptyDirs(b.path)
}
