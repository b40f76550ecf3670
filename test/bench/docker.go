package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// benchPlugin is the name under which the measured instance serves container engines.
const benchPlugin = "berth-bench"

// containers measures Berth's share of `podman run` with a new volume: what the plugin takes for create, mount and
// unmount, asked as the engine asks. The instance is one of its own, as only it serves a plugin.
func containers(ctx context.Context, runs int, t *table) error {
	if runs == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "berth-plugins-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := newSubject("berth", "--pool-size", "8Gi", "--docker-plugin", benchPlugin, "--docker-plugin-dir", dir)
	if err != nil {
		return err
	}
	defer s.remove()
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.in.WaitOutput(ctx, "container engines find plugin "+benchPlugin); err != nil {
		return err
	}
	p := newPluginClient(filepath.Join(dir, benchPlugin+".sock"))
	var all, create, mount, unmount []time.Duration
	for i := range runs {
		if i%50 == 0 {
			fmt.Fprintf(os.Stderr, "containers: volume %d of %d\n", i, runs)
		}
		name := fmt.Sprintf("run-%d", i)
		took := [3]time.Duration{}
		for k, step := range []struct {
			method string
			body   map[string]any
		}{
			{"Create", map[string]any{"Name": name, "Opts": map[string]string{"size": "1Gi"}}},
			{"Mount", map[string]any{"Name": name, "ID": name}},
			{"Unmount", map[string]any{"Name": name, "ID": name}},
		} {
			began := time.Now()
			if err := p.call(ctx, step.method, step.body); err != nil {
				return fmt.Errorf("%s: %s: %w", name, step.method, err)
			}
			took[k] = time.Since(began)
		}
		if err := p.call(ctx, "Remove", map[string]any{"Name": name}); err != nil {
			return fmt.Errorf("%s: remove: %w", name, err)
		}
		create, mount, unmount = append(create, took[0]), append(mount, took[1]), append(unmount, took[2])
		all = append(all, took[0]+took[1]+took[2])
	}
	t.durations(s.name, fmt.Sprintf("podman run with a new 1 GiB volume: Berth's share, %d runs", runs), all)
	t.durations(s.name, "– create", create)
	t.durations(s.name, "– mount", mount)
	t.durations(s.name, "– unmount", unmount)
	return s.down(ctx)
}

// pluginClient speaks the volume plugin protocol.
type pluginClient struct{ http *http.Client }

func newPluginClient(socket string) pluginClient {
	return pluginClient{&http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}}
}

func (p pluginClient) call(ctx context.Context, method string, body map[string]any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/VolumeDriver."+method, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := p.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", bytes.TrimSpace(said))
	}
	return nil
}
