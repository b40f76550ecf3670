package cluster

import (
	"slices"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/provision"
)

func TestChooseRoles(t *testing.T) {
	for name, c := range map[string]struct {
		asked []string
		want  []string // nil: all
		err   string
	}{
		"nothing":            {nil, nil, ""},
		"all":                {[]string{"*"}, nil, ""},
		"two":                {[]string{"provision", "attach"}, []string{"attach", "provision"}, ""},
		"all but one":        {[]string{"*", "-snapshot-controller"}, without1("snapshot-controller"), ""},
		"but one":            {[]string{"-block"}, without1("block"), ""},
		"the last one wins":  {[]string{"*", "-attach", "attach"}, nil, ""},
		"unknown":            {[]string{"atach"}, nil, `"atach"`},
		"unknown, left out":  {[]string{"*", "-atach"}, nil, `"atach"`},
		"nothing is left":    {[]string{"attach", "-attach"}, nil, "nothing to do"},
		"upper case is none": {[]string{"Attach"}, nil, `"Attach"`},
	} {
		got, err := ChooseRoles(c.asked)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v", name, err)
			continue
		}
		if err != nil {
			continue
		}
		want := c.want
		if want == nil {
			want = slices.Clone(Roles)
		}
		var have []string
		for r := range got {
			have = append(have, r)
		}
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%s: %q, want %q", name, have, want)
		}
	}
}

func without1(name string) []string {
	return slices.DeleteFunc(slices.Clone(Roles), func(r string) bool { return r == name })
}

func TestWithoutAreProvisionsOnly(t *testing.T) {
	got := without(map[string]bool{string(provision.Attach): true, RoleBlock: true})
	if slices.Contains(got, provision.Attach) || len(got) != len(provision.Roles)-1 {
		t.Errorf("without is %q", got)
	}
}

func TestParseGates(t *testing.T) {
	for text, want := range map[string]string{ // the error; "" is none
		"Topology=true":                        "",
		"Topology=false":                       "always true",
		"CSIVolumeGroupSnapshot=false":         "",
		"VolumeAttributesClass=FALSE":          "",
		"CrossNamespaceVolumeDataSource=true":  "its own namespace",
		"CrossNamespaceVolumeDataSource=false": "",
		"MountPropagation=true":                `"MountPropagation"`,
		"Topology":                             "want true or false",
		"Topology=maybe":                       "want true or false",
		"":                                     `""`,
	} {
		_, err := ParseGates([]string{text})
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "--feature-gates: ")) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseAddresses(t *testing.T) {
	got, err := ParseAddresses([]string{"/csi/csi.sock", "a.example.com=/run/a.sock", "unix:///run//b.sock", "c=unix:///run/c.sock", "/run/odd=name/d.sock"})
	want := []Address{{"", "/csi/csi.sock"}, {"a.example.com", "/run/a.sock"}, {"", "/run/b.sock"}, {"c", "/run/c.sock"}, {"", "/run/odd=name/d.sock"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for text, why := range map[string]string{
		"":                                     "absolute path",
		"csi.sock":                             "absolute path",
		"=/csi.sock":                           "no CSI driver's name",
		"a b=/csi.sock":                        "no CSI driver's name",
		"-a=/csi.sock":                         "no CSI driver's name",
		strings.Repeat("a", 64) + "=/csi.sock": "no CSI driver's name",
		"tcp://127.0.0.1:1":                    "absolute path",
		"/" + strings.Repeat("x", 108):         "the kernel allows 107",
	} {
		if _, err := ParseAddresses([]string{text}); err == nil || !strings.Contains(err.Error(), why) || !strings.HasPrefix(err.Error(), "--csi-address ") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, twice := range [][]string{{"/a", "/a"}, {"n=/a", "n=/b"}, {"/a", "n=/./a"}} {
		if _, err := ParseAddresses(twice); err == nil || !strings.Contains(err.Error(), "twice") {
			t.Errorf("%q: %v", twice, err)
		}
	}
}

// Whatever is typed, what is taken is an absolute path that fits a socket, under no name or a valid one.
func FuzzParseAddresses(f *testing.F) {
	for _, s := range []string{"/csi/csi.sock", "a=/b", "unix:///x", "a=b=/c", "=", "../x", "a=unix://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseAddresses([]string{text})
		if err != nil {
			return
		}
		for _, a := range got {
			if !strings.HasPrefix(a.Socket, "/") || len(a.Socket) > longestSocket || a.Name != "" && validDriverName(a.Name) != nil {
				t.Errorf("%q: %+v", text, a)
			}
		}
	})
}

func controllerOptions() ControllerOptions {
	return ControllerOptions{Election: DefaultElection, Workers: DefaultWorkers, RPCTimeout: DefaultRPCTimeout, CSIAddress: []Address{{"", "/csi.sock"}}}
}

// Each wrong flag is named.
func TestControllerOptionsThatAreWrong(t *testing.T) {
	o := controllerOptions()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	for flag, change := range map[string]func(*ControllerOptions){
		"--worker-threads 0":                  func(o *ControllerOptions) { o.Workers = 0 },
		"--worker-threads 5000":               func(o *ControllerOptions) { o.Workers = 5000 },
		"--timeout":                           func(o *ControllerOptions) { o.RPCTimeout = time.Millisecond },
		"--capacity-poll-interval":            func(o *ControllerOptions) { o.CapacityPoll = -1 },
		"--kube-api-qps":                      func(o *ControllerOptions) { o.API.QPS = -1 },
		"--kube-api-burst 5 is less":          func(o *ControllerOptions) { o.API.QPS, o.API.Burst = 10, 5 },
		"--http-endpoint":                     func(o *ControllerOptions) { o.HTTP = "8080" },
		"--leader-election-lease-duration":    func(o *ControllerOptions) { o.Election.LeaseDuration = 1500 * time.Millisecond },
		"--leader-election-renew-deadline":    func(o *ControllerOptions) { o.Election.RenewDeadline = time.Minute },
		"--leader-election-retry-period":      func(o *ControllerOptions) { o.Election.RetryPeriod = 9 * time.Second },
		"--leader-election-lease-name":        func(o *ControllerOptions) { o.Election.Name = "No/Name" },
		"--leader-election-namespace":         func(o *ControllerOptions) { o.Election.Namespace = "../x" },
		"--controllers without block, and no": func(o *ControllerOptions) { o.CSIAddress = nil; o.Controllers = map[string]bool{"attach": true} },
	} {
		o := controllerOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func nodeOptions() NodeOptions {
	return NodeOptions{KubeletDir: DefaultKubeletDir, DataDir: "/var/lib/berth", NodeName: "n1"}
}

func TestNodeOptionsThatAreWrong(t *testing.T) {
	o := nodeOptions()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	for flag, change := range map[string]func(*NodeOptions){
		"--node-name (or KUBE_NODE_NAME)": func(o *NodeOptions) { o.NodeName = "" },
		`--node-name "N 1"`:               func(o *NodeOptions) { o.NodeName = "N 1" },
		"--kubelet-dir \"kubelet\"":       func(o *NodeOptions) { o.KubeletDir = "kubelet" },
		"--kubelet-dir and --data-dir":    func(o *NodeOptions) { o.KubeletDir = "" },
		"is too long":                     func(o *NodeOptions) { o.KubeletDir = "/" + strings.Repeat("k", 90) },
		"--data-dir":                      func(o *NodeOptions) { o.DataDir = "./x" },
		"--install-flexvolume":            func(o *NodeOptions) { o.FlexVolumeDir = "exec" },
		"--discovery-config":              func(o *NodeOptions) { o.DiscoveryConfig = "c" },
		"--pool-device \"sdb\"":           func(o *NodeOptions) { o.PoolDevice = "sdb" },
		"--pool-size and --pool-device":   func(o *NodeOptions) { o.PoolSize, o.PoolDevice = "1Gi", "/dev/sdb" },
		"--max-volumes -1":                func(o *NodeOptions) { o.MaxVolumes = -1 },
		"--max-volumes 1001":              func(o *NodeOptions) { o.MaxVolumes = 1001 },
		"--pool-size: ":                   func(o *NodeOptions) { o.PoolSize = "banana" },
		"--block=false":                   func(o *NodeOptions) { o.WithoutBlock = true },
		"serves that driver itself":       func(o *NodeOptions) { o.CSIAddress = []Address{{"block.csi.berth.io", "/x"}} },
		"--http-endpoint":                 func(o *NodeOptions) { o.HTTP = "x" },
	} {
		o := nodeOptions()
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// The limit follows the workers, unless it is given.
func TestLimitsFollowTheWorkers(t *testing.T) {
	for _, c := range []struct {
		api     API
		workers int
		qps     float32
		burst   int
	}{
		{API{}, 32, 640, 1280}, {API{}, 1, 50, 100}, {API{QPS: 5}, 32, 5, 10}, {API{QPS: 5, Burst: 7}, 32, 5, 7}, {API{Burst: 3000}, 100, 2000, 3000},
	} {
		if qps, burst := c.api.limits(c.workers); qps != c.qps || burst != c.burst {
			t.Errorf("%+v with %d workers: %g, %d", c.api, c.workers, qps, burst)
		}
	}
}
