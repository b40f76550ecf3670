package mount

import (
	"fmt"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// Orphan is a mount or a directory that belongs to no pod.
type Orphan struct {
	Path string
	// Kind is "pod directory", "staged volume", "volume directory" or "mount".
	Kind string
	// Detail is for a user: which pod or volume it was.
	Detail string
}

// Orphans lists what is mounted or left below dataDir/pods and dataDir/plugins/kubernetes.io and belongs to none of the known
// pods. It changes nothing and needs no Manager; a volume that is being mounted or unmounted at this moment may show.
func Orphans(dataDir string, plugins *plugin.Registry, knownPods []types.UID) ([]Orphan, error) {
	known := map[types.UID]bool{}
	for _, uid := range knownPods {
		known[uid] = true
	}
	f := scan(dataDir, plugins)
	var out []Orphan
	for _, uid := range f.pods {
		if !known[uid] {
			out = append(out, Orphan{podDir(dataDir, uid), "pod directory", fmt.Sprintf("pod %s is not on this node", uid)})
		}
	}
	used := map[v1.UniqueVolumeName]bool{}
	inUse := map[string]bool{} // staging paths of volumes in use: mounts below them are theirs
	for _, u := range f.published {
		if known[u.pod] {
			used[u.Name] = true
			inUse[u.GlobalPath] = u.GlobalPath != ""
		}
	}
	delete(inUse, "")
	for _, v := range f.staged {
		inUse[v.GlobalPath] = used[v.Name]
		if !used[v.Name] {
			out = append(out, Orphan{v.GlobalPath, "staged volume", fmt.Sprintf("volume %s is staged, and no pod of this node uses it", v.SpecName)})
		}
	}
	for _, b := range f.broken {
		if b.path != "" {
			out = append(out, Orphan{b.path, "volume directory", b.err.Error()})
		}
	}
	points, err := mountsBelow(dataDir)
	if err != nil {
		return out, err
	}
	real, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return out, err
	}
	for _, p := range points {
		rel, err := filepath.Rel(real, p)
		if err != nil {
			continue
		}
		if detail, orphan := orphanMount(rel, known, filepath.Join(dataDir, rel), inUse); orphan {
			out = append(out, Orphan{p, "mount", detail})
		}
	}
	return out, nil
}

// orphanMount judges a mount point by its path below the data directory.
func orphanMount(rel string, known map[types.UID]bool, path string, staged map[string]bool) (string, bool) {
	parts := strings.Split(rel, "/")
	switch {
	case len(parts) >= 2 && parts[0] == "pods":
		uid := types.UID(parts[1])
		return fmt.Sprintf("a volume of pod %s, which is not on this node", uid), !known[uid]
	case strings.HasPrefix(rel, "plugins/kubernetes.io/"):
		if _, listed := staged[path]; listed {
			return "", false // judged as a staged volume already
		}
		for uid := range known { // raw block volumes: the path ends in the pod
			if strings.HasSuffix(rel, "/"+string(uid)) {
				return "", false
			}
		}
		for global := range staged {
			if strings.HasPrefix(path, global+"/") {
				return "", false
			}
		}
		return "mounted for a volume that no pod of this node has", true
	}
	return "", false // pools and drivers' own
}
