package standalone

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/docker"
	"berth.io/berth/internal/trace"
	"berth.io/berth/internal/volume"
	"berth.io/berth/internal/why"
)

// Paths of the control socket for volumes by name. What only changes objects needs no running room and goes to the API.
const (
	PathVolumeMount   = "/v1/volume/mount"
	PathVolumeUnmount = "/v1/volume/unmount"
)

// NoPlugin as the name of the container engines' plugin turns it off.
const NoPlugin = "off"

// validatePlugin decides who serves the machine's container engines: the instance in the default directory, and others
// when they are told a name.
func (o *Options) validatePlugin() error {
	if o.Plugin == "" && (o.DataDir == string(DefaultDataDir) || o.PluginDir != "") {
		o.Plugin, o.pluginOptional = docker.DefaultName, o.PluginDir == ""
	}
	if o.PluginDir == "" {
		o.PluginDir = docker.DefaultDir
	}
	if o.Plugin == "" || o.Bare {
		o.Plugin = NoPlugin
	}
	if o.Plugin == NoPlugin {
		return nil
	}
	if err := (docker.Options{Name: o.Plugin, Dir: o.PluginDir}).Validate(); err != nil {
		return fmt.Errorf("--docker-plugin: %w", err)
	}
	return nil
}

// makeNamed makes what serves volumes by name.
func (r *rooms) makeNamed() error {
	in := r.in
	snaps, err := snapclient.NewForConfig(in.config)
	if err != nil {
		return err
	}
	r.named = volume.New(volume.Options{Client: in.client, Snapshots: snaps, DataDir: string(in.dir), Log: in.log, Problem: r.problem,
		Mounted: r.mountedPath})
	if in.Plugin != NoPlugin {
		r.engines = docker.New(docker.Options{Name: in.Plugin, Dir: in.PluginDir, Volumes: r.named, Log: in.log, Serving: func(socket string) {
			in.say.line("container engines find plugin %s at %s", in.Plugin, socket)
		}})
	}
	return nil
}

// mountedPath is where a pod's volume is mounted now.
func (r *rooms) mountedPath(pod types.UID, name string) (string, bool) {
	for _, v := range r.mount.Status(pod).Volumes {
		if v.Name == name {
			return v.Path, v.Mounted && v.Path != ""
		}
	}
	return "", false
}

// problem is what `berth why` would say of a pod's volumes.
func (r *rooms) problem(ctx context.Context, namespace, pod string) string {
	r.journal.Flush()
	j, err := why.Explain(ctx, why.Sources{Client: r.in.client, Holders: r.in.holders(),
		Read: func(f trace.Filter) ([]trace.Entry, error) { return trace.Read(r.in.dir.Journal(), f) },
	}, why.Target{Kind: why.Pod, Namespace: namespace, Name: pod})
	if err != nil {
		return ""
	}
	problems := []*why.Problem{j.Problem}
	for i := range j.Volumes {
		problems = append(problems, j.Volumes[i].Problem)
	}
	for _, p := range problems {
		if p == nil {
			continue
		}
		var parts []string
		for _, text := range []string{p.What, p.Message, p.Advice} {
			if text = strings.TrimRight(text, ". "); text != "" && !slices.Contains(parts, text) {
				parts = append(parts, text)
			}
		}
		return strings.Join(parts, ". ")
	}
	return ""
}

// runNamed brings the mounts on the host back as soon as the instance is ready.
func (r *rooms) runNamed(ctx context.Context) error {
	if !r.untilOpen(ctx) {
		return nil
	}
	return r.named.Run(ctx)
}

// runPlugin serves container engines as soon as the instance is ready. Where nobody asked for the plugin by name, an
// instance that cannot serve it goes on without.
func (r *rooms) runPlugin(ctx context.Context) error {
	if r.engines == nil || !r.untilOpen(ctx) {
		return nil
	}
	err := r.engines.Run(ctx)
	if err != nil && ctx.Err() == nil && r.in.pluginOptional {
		r.in.say.line("container engines are not served: %v", err)
		return nil
	}
	return err
}

func (r *rooms) untilOpen(ctx context.Context) bool {
	select {
	case <-r.open:
		return true
	case <-ctx.Done():
		return false
	}
}

// openWithin is how long a command waits for an instance that is starting.
const openWithin = 30 * time.Second

// named answers a command about a volume's mount on the host when the instance is ready.
func (in *instance) named(r *http.Request, do func(ctx context.Context, q url.Values) (any, error)) (any, error) {
	waited, cancel := context.WithTimeout(r.Context(), openWithin)
	defer cancel()
	if !in.rooms.untilOpen(waited) {
		return nil, errors.New("the instance is still starting; try again")
	}
	return do(r.Context(), r.URL.Query())
}

func (in *instance) mountVolume(ctx context.Context, q url.Values) (any, error) {
	return struct{}{}, in.rooms.named.MountAt(ctx, volume.HostMount{Namespace: q.Get("namespace"), Name: q.Get("name"), Path: q.Get("path"),
		ReadOnly: isTrue(q, "readOnly"), Over: isTrue(q, "over")})
}

// Unmounted is the answer to an unmount.
type Unmounted struct {
	Count int `json:"count"`
}

func (in *instance) unmountVolume(ctx context.Context, q url.Values) (any, error) {
	if path := q.Get("path"); path != "" {
		was, err := in.rooms.named.UnmountAt(ctx, path)
		if was {
			return Unmounted{1}, err
		}
		return Unmounted{}, err
	}
	n, err := in.rooms.named.UnmountVolume(ctx, q.Get("namespace"), q.Get("name"), isTrue(q, "force"))
	return Unmounted{n}, err
}

func isTrue(q url.Values, key string) bool {
	is, err := strconv.ParseBool(q.Get(key))
	return is && err == nil
}
