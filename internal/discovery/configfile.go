package discovery

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// ReadConfig reads the configuration at path: a manifest with the original's ConfigMap in it, or a directory with a file for each
// key, as a pod has a mounted ConfigMap.
func ReadConfig(path string) (*Config, error) {
	data, err := readData(path)
	if err == nil {
		var c *Config
		if c, err = ParseConfig(data); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("discovery configuration %s: %w", path, err)
}

func readData(path string) (map[string]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err) // the path is said by the caller
	}
	if !st.IsDir() {
		b, err := readBounded(path)
		if err != nil {
			return nil, err
		}
		return manifestData(b)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	data := map[string]string{}
	for _, e := range entries {
		// ..data and the directory that it points to are how a kubelet replaces all keys at once.
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		file := filepath.Join(path, e.Name())
		if st, err := os.Stat(file); err == nil && st.IsDir() {
			continue
		}
		b, err := readBounded(file)
		if err != nil {
			return nil, err
		}
		data[e.Name()] = string(b)
	}
	return data, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no plain file", path))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(b) > maxConfigBytes {
		err = fmt.Errorf("%s is larger than a ConfigMap can be (1 MiB)", path)
	}
	return b, err
}

// manifestData finds the ConfigMap in a manifest, which may have the original's DaemonSet and classes in it as well.
func manifestData(manifest []byte) (map[string]string, error) {
	var found *v1.ConfigMap
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		var cm v1.ConfigMap
		var kind struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := yaml.Unmarshal(document, &kind); err != nil {
			return nil, errors.New(plainYAML(err))
		}
		if kind.Kind != "ConfigMap" {
			continue
		}
		if err := yaml.UnmarshalStrict(document, &cm); err != nil {
			return nil, fmt.Errorf("ConfigMap: %s", plainYAML(err))
		}
		if _, is := cm.Data[keyClasses]; !is {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("ConfigMaps %s and %s both have the key %s: leave one", found.Name, cm.Name, keyClasses)
		}
		found = &cm
	}
	if found == nil {
		return nil, fmt.Errorf("no ConfigMap with the key %s in it", keyClasses)
	}
	return found.Data, nil
}
