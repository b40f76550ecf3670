package kill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// withPlugin serves container engines from a directory of the test's own.
func (s *script) withPlugin() []string {
	return []string{"--pool-size", "2Gi", "--docker-plugin", "berth", "--docker-plugin-dir", s.host}
}

const ownClass = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: own}
provisioner: block.csi.berth.io
allowVolumeExpansion: true
`

// namedLife has volumes by name: those of `berth volume`, and those of a container engine.
func (s *script) namedLife() []step {
	srv := filepath.Join(s.host, "srv")
	berth := func(args ...string) func() error {
		return func() error {
			_, err := s.command(append([]string{"volume"}, args...)...)
			return err
		}
	}
	return []step{
		{"a class", func() error { return s.in.Apply(s.ctx, ownClass) }},
		{"a volume of another filesystem", berth("create", "first", "--class", "own", "--fs-type", "xfs", "--size", "320Mi")},
		{"the class is another one", s.replaceClass},
		{"a volume of the new one", berth("create", "data", "--class", "own", "--fs-type", "xfs", "--size", "320Mi")},
		{"it is mounted", berth("mount", "data", srv)},
		{"data is written and fsynced", func() error { return writeSynced(filepath.Join(srv, "precious")) }},
		{"it has grown", berth("resize", "data", "384Mi")},
		{"a snapshot", berth("snapshot", "data", "kept")},
		{"restored", berth("restore", "kept", "again")},
		{"mounted beside it", berth("mount", "again", srv+"-again")},
		{"the copy has the data", func() error { return holds(filepath.Join(srv+"-again", "precious")) }},
		{"an engine's volume", func() error {
			return s.engine("Create", map[string]any{"Name": "Of_an.engine", "Opts": map[string]string{"size": "64Mi"}})
		}},
		{"mounted for a container", func() error { return s.engine("Mount", map[string]any{"Name": "Of_an.engine", "ID": "one"}) }},
		{"and for another", func() error { return s.engine("Mount", map[string]any{"Name": "Of_an.engine", "ID": "two"}) }},
		{"the first has ended", func() error { return s.engine("Unmount", map[string]any{"Name": "Of_an.engine", "ID": "one"}) }},
		{"the other, too", func() error { return s.engine("Unmount", map[string]any{"Name": "Of_an.engine", "ID": "two"}) }},
		{"the engine's volume is gone", func() error { return s.engine("Remove", map[string]any{"Name": "Of_an.engine"}) }},
		{"the data is there", func() error { return holds(filepath.Join(srv, "precious")) }},
		{"unmounted", func() error { return errors.Join(berth("unmount", "data")(), berth("unmount", "again")()) }},
		{"the snapshot is gone", func() error {
			_, err := s.in.Kubectl(s.ctx, "delete", "volumesnapshot", "kept", "--ignore-not-found", "--timeout=60s")
			return err
		}},
		{"the volumes are gone", s.removeNamed},
		{"nothing is left", s.nothingLeft},
	}
}

// replaceClass deletes the class and makes one of the same name, once.
func (s *script) replaceClass() error {
	classes := s.client.StorageV1().StorageClasses()
	c, err := classes.Get(s.ctx, "own", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil && c.Annotations["second"] == "" {
		if err := classes.Delete(s.ctx, "own", metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return s.in.Apply(s.ctx, strings.Replace(ownClass, "{name: own}", `{name: own, annotations: {second: "yes"}}`, 1)+
		"parameters: {access: local}\n")
}

func (s *script) removeNamed() error {
	out, err := s.in.Berth(s.ctx, "volume", "list", "-o", "json")
	if err != nil {
		return err
	}
	var failed error
	for _, name := range []string{"first", "data", "again"} {
		if strings.Contains(out, `"`+name+`"`) {
			_, err := s.command("volume", "rm", name)
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// engine calls the plugin as Docker does.
func (s *script) engine(method string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.host, "berth.sock"))
	}}}
	r, err := http.NewRequestWithContext(s.ctx, http.MethodPost, "http://plugin/VolumeDriver."+method, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Err string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if method == "Remove" && strings.Contains(answer.Err, "no such volume") { // the answer to the first call was lost with the process
		return nil
	}
	if answer.Err != "" {
		return fmt.Errorf("%s: %s", method, answer.Err)
	}
	return nil
}

func writeSynced(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString("fsynced")
	return errors.Join(err, f.Sync(), f.Close())
}

func holds(path string) error {
	b, err := os.ReadFile(path)
	if err == nil && string(b) != "fsynced" {
		err = fmt.Errorf("%s holds %q", path, b)
	}
	return err
}
