package standalone

import (
	"strings"
	"testing"
)

// Flags that cannot be right are refused before anything is touched.
func TestOptionsAreValidated(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"nothing given", Options{}, ""},
		{"all given", Options{Controllers: ControllersUpstream, PoolSize: "50Gi", HTTP: "127.0.0.1:0", Listen: "127.0.0.1:6443", NodeName: "vm-1"}, ""},
		{"controllers", Options{Controllers: "x"}, "want berth or upstream"},
		{"two pools", Options{PoolSize: "1Gi", PoolDevice: "/dev/x"}, "exclude each other"},
		{"pool size in words", Options{PoolSize: "banana"}, "--pool-size"},
		{"pool size of nothing", Options{PoolSize: "0"}, "--pool-size"},
		{"listen without port", Options{Listen: "foo"}, "--listen"},
		{"listen on a name", Options{Listen: "localhost:6443"}, "with an IP address"},
		{"listen on no port", Options{Listen: "127.0.0.1:x"}, "--listen"},
		{"endpoint without port", Options{HTTP: "x"}, "--http-endpoint"},
		{"relative socket", Options{CSIAddress: map[string]string{"a": "b"}}, "absolute path"},
		{"node name", Options{NodeName: "My Host"}, "--node-name"},
	} {
		err := c.o.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
