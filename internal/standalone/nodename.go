package standalone

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"berth.io/berth/internal/boundary"
)

// node returns the name of the instance's one node: asked, or the host's name. It is chosen once in the life of a data
// directory. Under another name every pod would be a stranger's, and its volumes would be unmounted; a host that is
// renamed keeps the name that its pods know.
func (d DataDir) node(asked string) (string, error) {
	path := d.join("node")
	b, err := os.ReadFile(path)
	if err == nil {
		name := strings.TrimSpace(string(b))
		if asked != "" && asked != name {
			return "", fmt.Errorf("data directory %s belongs to node %q, not %q: leave --node-name out, or use another directory", d, name, asked)
		}
		if !validNodeName(name) {
			return "", fmt.Errorf("%s holds no node name; write the one that its pods have in spec.nodeName", path)
		}
		return name, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if asked == "" {
		if asked, err = os.Hostname(); err != nil {
			return "", err
		}
		asked = strings.ToLower(asked)
	}
	if !validNodeName(asked) {
		return "", fmt.Errorf("the host's name %q is not a DNS name; give one with --node-name", asked)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte(asked+"\n"), 0o644); err != nil {
		return "", err
	}
	return asked, boundary.Do("standalone/pin-node", func() error { return os.Rename(temp, path) })
}

// validNodeName is the API's own check.
func validNodeName(name string) bool { return len(validation.IsDNS1123Subdomain(name)) == 0 }
