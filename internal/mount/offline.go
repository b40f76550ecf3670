package mount

import (
	"context"
	"log/slog"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// TeardownOffline unpublishes and unstages everything below dataDir with no API: through the plugins where their drivers
// answer, else by plain unmounts. plugins are made without a client.
func TeardownOffline(ctx context.Context, dataDir string, plugins *plugin.Registry, log *slog.Logger) error {
	return nil
}

// Orphan is a mount or a directory that belongs to no pod.
type Orphan struct {
	Path string
	// Kind is "mount", "pod directory", "staged volume" or "volume directory".
	Kind string
	// Detail is for a user: which pod or volume it was.
	Detail string
}

// Orphans lists what is mounted or left below dataDir/pods and dataDir/plugins and belongs to none of the known pods.
func Orphans(dataDir string, knownPods []types.UID) ([]Orphan, error) { return nil, nil }
