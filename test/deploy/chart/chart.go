// Package chart renders deploy/helm/berth with Helm's own engine, without a cluster.
package chart

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	v2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// KubeVersion that the chart is rendered for.
const KubeVersion = "v1.36.3"

// Load reads and checks the chart in a directory.
func Load(dir string) (*v2.Chart, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load the chart in %s: %w", dir, err)
	}
	return c, c.Validate()
}

// Render is `helm install berth CHART -n NAMESPACE` with values given over the chart's own: by template (rbac-node.yaml), what it makes. Templates that
// make nothing are left out.
func Render(c *v2.Chart, namespace string, values map[string]any) (map[string]string, error) {
	version, err := common.ParseKubeVersion(KubeVersion)
	if err != nil {
		return nil, err
	}
	capabilities := *common.DefaultCapabilities
	capabilities.KubeVersion = *version
	release := common.ReleaseOptions{Name: "berth", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, values, release, &capabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for file, text := range files {
		if name := path.Base(file); strings.TrimSpace(text) != "" && !strings.HasPrefix(name, "_") {
			out[name] = text
		}
	}
	return out, nil
}

// Values reads values as a user writes them.
func Values(text string) (map[string]any, error) {
	out := map[string]any{}
	return out, yaml.UnmarshalStrict([]byte(text), &out)
}

// Objects of some files that Render made, in the order of the files' names.
func Objects(files map[string]string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		found, err := Parse([]byte(files[name]))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// Parse reads the objects of a manifest; a key that is there twice is an error.
func Parse(manifest []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		u := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(document, &u.Object); err != nil {
			return nil, err
		}
		if len(u.Object) > 0 {
			out = append(out, u)
		}
	}
}
