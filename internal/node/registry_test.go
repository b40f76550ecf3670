package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// testPlugin is a registrar and a driver behind one socket.
type testPlugin struct {
	registerapi.UnimplementedRegistrationServer
	csi.UnimplementedNodeServer
	info registerapi.PluginInfo
	self csi.NodeGetInfoResponse
	hang bool

	mu   sync.Mutex
	told []*registerapi.RegistrationStatus
}

func (p *testPlugin) GetInfo(ctx context.Context, _ *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	if p.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &registerapi.PluginInfo{Type: p.info.Type, Name: p.info.Name, Endpoint: p.info.Endpoint, SupportedVersions: p.info.SupportedVersions}, nil
}

func (p *testPlugin) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, s)
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (p *testPlugin) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: p.self.NodeId, MaxVolumesPerNode: p.self.MaxVolumesPerNode, AccessibleTopology: p.self.AccessibleTopology}, nil
}

// heard is the last outcome that the plugin was told.
func (p *testPlugin) heard() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.told) == 0 {
		return "nothing"
	}
	last := p.told[len(p.told)-1]
	return fmt.Sprintf("%v %s", last.PluginRegistered, last.Error)
}

// serve puts the plugin at socket; stop removes it.
func serve(t *testing.T, socket string, p *testPlugin) (stop func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	registerapi.RegisterRegistrationServer(s, p)
	csi.RegisterNodeServer(s, p)
	go func() { _ = s.Serve(l) }()
	stop = sync.OnceFunc(s.Stop) // closes and unlinks the socket
	t.Cleanup(stop)
	return stop
}

func goodPlugin(name string) *testPlugin {
	return &testPlugin{
		info: registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: name, SupportedVersions: []string{"1.0.0"}},
		self: csi.NodeGetInfoResponse{NodeId: "id-of-" + name, MaxVolumesPerNode: 7,
			AccessibleTopology: &csi.Topology{Segments: map[string]string{"topology." + name + "/node": "node-1"}}},
	}
}

func (r *rig) socket(name string) string { return filepath.Join(r.dir, "plugins_registry", name) }

func (r *rig) csiNode() map[string]storagev1.CSINodeDriver {
	entries := map[string]storagev1.CSINodeDriver{}
	c, err := r.client.StorageV1().CSINodes().Get(context.Background(), "node-1", metav1.GetOptions{})
	if err == nil {
		for _, d := range c.Spec.Drivers {
			entries[d.Name] = d
		}
	}
	return entries
}

func TestPluginRegistersAndGoes(t *testing.T) {
	r := start(t)
	p := goodPlugin("a.example.com")
	stop := serve(t, r.socket("a.sock"), p)
	r.eventually(func() string {
		if p.heard() != "true " {
			return "the plugin heard " + p.heard()
		}
		return ""
	})
	entry := r.csiNode()["a.example.com"]
	if entry.NodeID != "id-of-a.example.com" || len(entry.TopologyKeys) != 1 || entry.Allocatable == nil || *entry.Allocatable.Count != 7 {
		t.Errorf("CSINode entry %+v", entry)
	}
	node, _ := r.client.CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{})
	if node.Labels["topology.a.example.com/node"] != "node-1" || node.Annotations[nodeIDAnnotation] != `{"a.example.com":"id-of-a.example.com"}` {
		t.Errorf("node labels %v annotations %v", node.Labels, node.Annotations)
	}
	r.eventually(func() string {
		if s := r.agent.Status().Plugins; len(s) != 1 || !s[0].Registered || s[0].Name != "a.example.com" {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
	stop()
	r.eventually(func() string {
		if len(r.csiNode()) > 0 || len(r.drivers.names()) > 0 {
			return fmt.Sprintf("still registered: %v %v", r.csiNode(), r.drivers.names())
		}
		return ""
	})
}

// A plugin that hangs, one that refuses connections, and ones that answer rubbish: each is reported, none blocks the good one.
func TestBrokenPluginsHoldUpNobody(t *testing.T) {
	r := start(t)
	broken := map[string]func(*testPlugin){
		"bad name":      func(p *testPlugin) { p.info.Name = "Not_A_Name" },
		"driver name":   func(p *testPlugin) { p.info.Name = strings.Repeat("x", 64) },
		"is of type":    func(p *testPlugin) { p.info.Type = "DRAPlugin" },
		"list is empty": func(p *testPlugin) { p.info.SupportedVersions = nil },
		"speaks 1.x":    func(p *testPlugin) { p.info.SupportedVersions = []string{"0.3.0", "rubbish"} },
		"node ID":       func(p *testPlugin) { p.self.NodeId = "" },
		"negative":      func(p *testPlugin) { p.self.MaxVolumesPerNode = -1 },
		"topology key": func(p *testPlugin) {
			p.self.AccessibleTopology = &csi.Topology{Segments: map[string]string{"a/b/c": ""}}
		},
		"collides": func(p *testPlugin) {
			p.self.AccessibleTopology = &csi.Topology{Segments: map[string]string{"kubernetes.io/os": "beos"}}
		},
		"leaves": func(p *testPlugin) { p.info.Endpoint = "../../etc/x.sock" },
	}
	plugins := map[string]*testPlugin{}
	i := 0
	for text, spoil := range broken {
		p := goodPlugin(fmt.Sprintf("p%d.example.com", i))
		spoil(p)
		plugins[text] = p
		serve(t, r.socket(fmt.Sprintf("p%d.sock", i)), p)
		i++
	}
	serve(t, r.socket("hang.sock"), &testPlugin{hang: true})
	good := goodPlugin("good.example.com")
	began := time.Now()
	serve(t, r.socket("good.sock"), good)
	r.eventually(func() string {
		if good.heard() != "true " {
			return "the good plugin heard " + good.heard()
		}
		return ""
	})
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("the good plugin waited %v", d)
	}
	for text, p := range plugins {
		want := text
		if text == "bad name" {
			want = "driver name"
		}
		r.eventually(func() string {
			if h := p.heard(); !strings.HasPrefix(h, "false ") || !strings.Contains(h, want) {
				return fmt.Sprintf("%s: the plugin heard %q", text, h)
			}
			return ""
		})
	}
	// The one whose topology collides is in the table for the moment of each attempt.
	r.eventually(func() string {
		if names := r.drivers.names(); len(names) != 1 || names[0] != "good.example.com" {
			return fmt.Sprintf("drivers %v", names)
		}
		return ""
	})
	if c := r.csiNode(); len(c) != 1 {
		t.Errorf("CSINode %v", c)
	}
	r.eventually(func() string {
		for _, s := range r.agent.Status().Plugins {
			if !s.Registered && s.Error == "" && !strings.HasSuffix(s.Socket, "hang.sock") {
				return "no reason is given for " + s.Socket
			}
		}
		return ""
	})
}

// Sockets that were there before the agent, in a subdirectory, or appear again with another plugin behind them.
func TestSocketsThatWereThereAndThatAreReplaced(t *testing.T) {
	r := start(t)
	sub := r.socket("vendor/a.sock")
	first := goodPlugin("first.example.com")
	stop := serve(t, sub, first)
	r.eventually(func() string {
		if first.heard() != "true " {
			return "heard " + first.heard()
		}
		return ""
	})
	stop()
	second := goodPlugin("second.example.com")
	serve(t, sub, second)
	r.eventually(func() string {
		c := r.csiNode()
		if _, old := c["first.example.com"]; old || len(c) != 1 || second.heard() != "true " {
			return fmt.Sprintf("CSINode %v, heard %s", c, second.heard())
		}
		return ""
	})
}

// Two sockets, one name: the second is refused in words, and takes over when the first goes.
func TestSecondPluginOfAName(t *testing.T) {
	r := start(t)
	first, second := goodPlugin("x.example.com"), goodPlugin("x.example.com")
	second.self.NodeId = "other"
	stop := serve(t, r.socket("1.sock"), first)
	r.eventually(func() string {
		if first.heard() != "true " {
			return "heard " + first.heard()
		}
		return ""
	})
	serve(t, r.socket("2.sock"), second)
	r.eventually(func() string {
		if !strings.Contains(second.heard(), "registered already, by") {
			return "heard " + second.heard()
		}
		return ""
	})
	stop()
	r.eventually(func() string {
		if c := r.csiNode()["x.example.com"]; c.NodeID != "other" || second.heard() != "true " {
			return fmt.Sprintf("CSINode %v, heard %s", c, second.heard())
		}
		return ""
	})
}

func TestResolveEndpoint(t *testing.T) {
	const socket = "/d/plugins_registry/x.sock"
	for in, want := range map[string]string{
		"": socket, "/a/../b.sock": "/b.sock", "unix:///a/b.sock": "/a/b.sock",
		"b.sock": "/d/plugins_registry/b.sock", "s/b.sock": "/d/plugins_registry/s/b.sock",
		"../b.sock": "", "s/../../b.sock": "",
	} {
		got, err := resolveEndpoint(in, socket)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

func TestMergeDrivers(t *testing.T) {
	entry := func(name, id string) storagev1.CSINodeDriver { return storagev1.CSINodeDriver{Name: name, NodeID: id} }
	have := []storagev1.CSINodeDriver{entry("a", "1"), entry("b", "1"), entry("c", "1")}
	wanted := map[string]driver{"a": {node: entry("a", "2")}, "d": {node: entry("d", "1")}}
	list, whole := mergeDrivers(have, wanted, map[string]bool{"b": true})
	if whole || !sameDrivers(list, []storagev1.CSINodeDriver{entry("c", "1"), entry("d", "1")}) {
		t.Errorf("a changed ID must go first: %v %v", list, whole)
	}
	list, whole = mergeDrivers(list, wanted, nil)
	if !whole || !sameDrivers(list, []storagev1.CSINodeDriver{entry("c", "1"), entry("d", "1"), entry("a", "2")}) {
		t.Errorf("and then comes back: %v %v", list, whole)
	}
}
