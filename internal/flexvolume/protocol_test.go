package flexvolume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fake answers what its fields say.
type fake struct {
	Unsupported
	do func(ctx context.Context) error
}

func (f fake) Init(ctx context.Context) (Capabilities, error) {
	return Capabilities{SupportsMetrics: true}, f.do(ctx)
}

func (f fake) Mount(ctx context.Context, _ Dir, _ *Options) error { return f.do(ctx) }

func (f fake) ExpandVolume(_ context.Context, _ *Options, _ Dir, n, _ int64) (int64, error) {
	return n, nil
}

func (f fake) IsAttached(context.Context, *Options, string) (bool, error) { return false, nil }

func table(do func(context.Context) error) map[string]func() Driver {
	return map[string]func() Driver{"fake": func() Driver { return fake{do: do} }}
}

func fine(context.Context) error { return nil }

const (
	podDir    = "/var/lib/kubelet/pods/u/volumes/berth~fake/v"
	deviceDir = "/var/lib/kubelet/plugins/kubernetes.io/flexvolume/berth/fake/mounts/v"
)

// said is what a call answers, as a host reads it.
func said(t *testing.T, s Status) (map[string]any, int) {
	t.Helper()
	var out bytes.Buffer
	code := answer(&out, s)
	if strings.Count(out.String(), "\n") != 1 || !strings.HasSuffix(out.String(), "}\n") {
		t.Fatalf("not one line: %q", out.String())
	}
	d := json.NewDecoder(&out)
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		t.Fatal("more than one object")
	}
	if (object["status"] == Success) != (code == 0) {
		t.Fatalf("%v, exit %d", object, code)
	}
	return object, code
}

func TestCallouts(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		do     func(context.Context) error
		status string
		words  string // in the message
	}{
		"nothing at all":                     {nil, fine, Failure, "argv[0]"},
		"no call-out":                        {[]string{"fake"}, fine, Failure, "no call-out"},
		"a path":                             {[]string{"/usr/libexec/x/foo~fake/fake", "init"}, fine, Success, ""},
		"another driver's name":              {[]string{"/x/zfs", "init"}, fine, Failure, "one of fake"},
		"version":                            {[]string{"/x/zfs", "--version"}, fine, Success, "v1"},
		"an unknown call-out":                {[]string{"fake", "resize", "{}"}, fine, NotSupported, `"resize"`},
		"one that the driver has no need of": {[]string{"fake", "attach", "{}", "n"}, fine, NotSupported, "attach"},
		"too few arguments":                  {[]string{"fake", "mount", podDir}, fine, Failure, "1 arguments; it takes <directory> <options>"},
		"too many":                           {[]string{"fake", "init", "x"}, fine, Failure, "it takes none"},
		"no JSON":                            {[]string{"fake", "mount", podDir, "{"}, fine, Failure, "not JSON: wrong at byte 1"},
		"no object":                          {[]string{"fake", "mount", podDir, "[]"}, fine, Failure, "not a JSON object"},
		"null":                               {[]string{"fake", "mount", podDir, "null"}, fine, Failure, "null"},
		"two objects":                        {[]string{"fake", "mount", podDir, "{}{}"}, fine, Failure, "not JSON"},
		"200 kB of junk":                     {[]string{"fake", "mount", podDir, strings.Repeat("\x01{", 100_000)}, fine, Failure, "not JSON"},
		"200 kB of a call-out":               {[]string{"fake", strings.Repeat("x", 200_000)}, fine, NotSupported, "not known"},
		"200 kB of a directory":              {[]string{"fake", "mount", strings.Repeat("/x", 100_000), "{}"}, fine, Failure, "at most 4095"},
		"a hundred thousand brackets":        {[]string{"fake", "mount", podDir, `{"a":` + strings.Repeat("[", 100_000)}, fine, Failure, "not"},
		"it fails":                           {[]string{"fake", "init"}, func(context.Context) error { return errors.New("no disk\x00\nat all") }, Failure, "fake init: no disk  at all"},
		"it panics":                          {[]string{"fake", "init"}, func(context.Context) error { panic("index out of range") }, Failure, "defect in the driver: index out of range"},
		"it reads past an end":               {[]string{"fake", "init"}, func(context.Context) error { return []error{}[len(os.Args)] }, Failure, "index out of range"},
		"a message without an end":           {[]string{"fake", "init"}, func(context.Context) error { return errors.New(strings.Repeat("é", 5000)) }, Failure, "…"},
		"sizes":                              {[]string{"fake", "expandvolume", "{}", deviceDir, "2048", "1024"}, fine, Success, ""},
		"a pod's directory to grow":          {[]string{"fake", "expandfs", "{}", "", podDir, "2048", "1024"}, fine, NotSupported, "expandfs"},
		"a size that is none":                {[]string{"fake", "expandvolume", "{}", deviceDir, "2Gi", "1024"}, fine, Failure, `new size "2Gi"`},
		"a negative size":                    {[]string{"fake", "expandvolume", "{}", deviceDir, "2", "-1"}, fine, Failure, "old size"},
		"a node with a dash first":           {[]string{"fake", "isattached", "{}", "-n"}, fine, Failure, "begins with a dash"},
		"a device with a newline":            {[]string{"fake", "waitforattach", "/dev/x\n", "{}"}, fine, Failure, "control character"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := said(t, serve(c.args, table(c.do), "v1", nil, time.Minute))
			message, _ := s["message"].(string)
			if s["status"] != c.status || !strings.Contains(message, c.words) || len(message) > messageLimit+100 {
				t.Errorf("%.300v; want %s, %q", s, c.status, c.words)
			}
		})
	}
	if s, _ := said(t, serve([]string{"fake", "isattached", "{}", "n"}, table(fine), "v1", nil, time.Minute)); s["attached"] != false {
		t.Errorf("not attached must be said: %v", s)
	}
	if s, _ := said(t, serve([]string{"fake", "expandvolume", "{}", deviceDir, "2048", "1"}, table(fine), "v1", nil, time.Minute)); s["volumeNewSize"] != 2048.0 {
		t.Errorf("%v", s)
	}
}

// A call-out ends at its bound, whether its driver listens or is held by the kernel; and on a signal.
func TestBounds(t *testing.T) {
	for call, want := range map[string]time.Duration{"init": atOnce, "mountdevice": formats, "unmount": mounts, "frobnicate": defaultBound} {
		if got := bound([]string{"fake", call}); got != want {
			t.Errorf("%s: %s, want %s", call, got, want)
		}
	}
	listens := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	for name, c := range map[string]struct {
		do     func(context.Context) error
		signal os.Signal
		words  string
	}{
		"it listens":        {listens, nil, "not done after 30ms (fake init: context deadline exceeded)"},
		"it is held":        {func(context.Context) error { <-held; return nil }, nil, "still held by the kernel"},
		"a signal":          {listens, syscall.SIGTERM, `"terminated"`},
		"done meanwhile":    {func(ctx context.Context) error { <-ctx.Done(); return nil }, syscall.SIGHUP, ""},
		"a signal, held":    {func(context.Context) error { <-held; return nil }, syscall.SIGINT, `"interrupt", and still held`},
		"not, but finished": {fine, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signals := make(chan os.Signal, 1)
			if c.signal != nil {
				signals <- c.signal
			}
			s := serve([]string{"fake", "init"}, table(c.do), "v1", signals, 30*time.Millisecond)
			if (s.Status == Success) != (c.words == "") || !strings.Contains(s.Message, c.words) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestParseOptions(t *testing.T) {
	o, err := ParseOptions(`{"kubernetes.io/fsType":"ext4","kubernetes.io/readwrite":"ro","kubernetes.io/pvOrVolumeName":"pv","server":"s","share":"/x",
		"kubernetes.io/mounterArgs.FsGroup":"42","kubernetes.io/pod.name":"p","kubernetes.io/pod.namespace":"ns","kubernetes.io/pod.uid":"u",
		"kubernetes.io/serviceAccount.name":"sa","kubernetes.io/secret/password":"aHVudGVyMg==","kubernetes.io/later":"x"}`)
	if err != nil {
		t.Fatal(err)
	}
	if o.FSType != "ext4" || !o.ReadOnly || o.Name != "pv" || *o.FSGroup != 42 || (o.Pod != Pod{"p", "ns", "u", "sa"}) ||
		string(o.Secrets["password"]) != "hunter2" || len(o.User) != 2 || o.User["share"] != "/x" {
		t.Errorf("%+v", o)
	}
	if err := o.Only("server", "share"); err != nil {
		t.Error(err)
	}
	if err := o.Only("server"); err == nil || !strings.Contains(err.Error(), `"share" is not one of server`) {
		t.Error(err)
	}
	var shown bytes.Buffer
	_ = json.NewEncoder(&shown).Encode(o.User)
	for _, text := range []string{shown.String(), o.Secrets["password"].String(), strings.TrimSpace(strings.Join(strings.Fields(fmt.Sprintf("%v %+v %#v", o, o, *o)), " "))} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("the secret is printed: %s", text)
		}
	}
	for name, c := range map[string][2]string{
		"a number":                {`{"size":10}`, `"size" is not a string`},
		"true":                    {`{"ro":true}`, `"ro" is not a string`},
		"null":                    {`{"server":null}`, "is not a string"},
		"a list":                  {`{"mountOptions":["ro"]}`, "is not a string"},
		"a password that is none": {`{"kubernetes.io/secret/password":12345678}`, "is not a string"},
		"not base64":              {`{"kubernetes.io/secret/password":"hunter2!"}`, "is not base64"},
		"ro or rw":                {`{"kubernetes.io/readwrite":"w"}`, "neither ro nor rw"},
		"a group that is none":    {`{"kubernetes.io/mounterArgs.FsGroup":"staff"}`, "no group id"},
		"group -1":                {`{"kubernetes.io/mounterArgs.FsGroup":"4294967295"}`, "no group id"},
		"a negative group":        {`{"kubernetes.io/mounterArgs.FsGroup":"-5"}`, "no group id"},
		"4096 bytes":              {`{"share":"` + strings.Repeat("x", 4096) + `"}`, "4096 bytes"},
		"a key of 70 kB":          {`{"` + strings.Repeat("k", 70_000) + `":1}`, "…"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseOptions(c[0])
			if err == nil || !strings.Contains(err.Error(), c[1]) || len(err.Error()) > 300 {
				t.Fatalf("%v; want %q", err, c[1])
			}
			for _, secret := range []string{"hunter2", "12345678"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error has the value: %v", err)
				}
			}
		})
	}
}

func TestDirectories(t *testing.T) {
	long := strings.Repeat("d", 255)
	for name, c := range map[string]struct {
		path   string
		device bool
		want   Dir // zero: refused
	}{
		"a pod's":           {podDir, false, Dir{"/var/lib/kubelet", "pods/u/volumes/berth~fake/v", "berth", "fake", "v"}},
		"another root":      {"/x/pods/y/z/pods/u/volumes/a~b/v", false, Dir{"/x/pods/y/z", "pods/u/volumes/a~b/v", "a", "b", "v"}},
		"the root itself":   {"/pods/u/volumes/a~b/v", false, Dir{"/", "pods/u/volumes/a~b/v", "a", "b", "v"}},
		"a trailing slash":  {podDir + "/", false, Dir{"/var/lib/kubelet", "pods/u/volumes/berth~fake/v", "berth", "fake", "v"}},
		"a device's":        {deviceDir, true, Dir{"/var/lib/kubelet", "plugins/kubernetes.io/flexvolume/berth/fake/mounts/v", "berth", "fake", "v"}},
		"the other kind":    {podDir, true, Dir{}},
		"the other, too":    {deviceDir, false, Dir{}},
		"etc":               {"/etc", false, Dir{}},
		"a part":            {"/var/lib/kubelet/pods/u/volumes/berth~fake", false, Dir{}},
		"more":              {podDir + "/more", false, Dir{}},
		"no vendor":         {"/k/pods/u/volumes/fake/v", false, Dir{}},
		"relative":          {"pods/u/volumes/a~b/v", false, Dir{}},
		"up":                {"/k/../pods/u/volumes/a~b/v", false, Dir{}},
		"up at the end":     {"/k/pods/u/volumes/a~b/..", false, Dir{}},
		"a dot":             {"/k/pods/./volumes/a~b/v", false, Dir{}},
		"a doubled slash":   {"/k//pods/u/volumes/a~b/v", false, Dir{}},
		"a newline":         {"/k/pods/u/volumes/a~b/v\n", false, Dir{}},
		"a NUL":             {"/k/pods/u/volumes/a~b/v\x00", false, Dir{}},
		"a dash first":      {"-o/pods/u/volumes/a~b/v", false, Dir{}},
		"empty":             {"", false, Dir{}},
		"4096 bytes":        {"/" + strings.Repeat(long+"/", 16) + "pods/u/volumes/a~b/v", false, Dir{}},
		"a name too long":   {"/k/pods/u/volumes/a~b/" + long + "d", false, Dir{}},
		"a name of 255":     {"/k/pods/u/volumes/a~b/" + long, false, Dir{"/k", "pods/u/volumes/a~b/" + long, "a", "b", long}},
		"no vendor, device": {"/k/plugins/kubernetes.io/flexvolume/b/mounts/v", true, Dir{}},
	} {
		t.Run(name, func(t *testing.T) {
			parse := ParseMountDir
			if c.device {
				parse = ParseDeviceDir
			}
			got, err := parse(c.path)
			if got != c.want || (err == nil) != (c.want != Dir{}) {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
			if err != nil && (len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x00")) {
				t.Errorf("%q", err)
			}
		})
	}
	if d, _ := ParseMountDir(podDir); d.Path() != podDir {
		t.Errorf("%+v", d)
	}
}

func TestFileName(t *testing.T) {
	seen := map[string]string{}
	for _, text := range []string{"", "a", "..", ".", "a/b", "a%2Fb", "nfs:/x", strings.Repeat("x", 300), strings.Repeat("x", 301), strings.Repeat("/", 300), "ä\n"} {
		name := FileName(text)
		if len(name) > 255 || strings.ContainsAny(name, "/\n\x00") || strings.HasPrefix(name, ".") {
			t.Errorf("%q is called %q", text, name)
		}
		if other, twice := seen[name]; twice {
			t.Errorf("%q and %q are both called %q", text, other, name)
		}
		seen[name] = text
	}
}

func FuzzParseOptions(f *testing.F) {
	for _, s := range []string{"{}", "null", `{"a":"b"}`, `{"kubernetes.io/secret/p":"aA=="}`, `{"kubernetes.io/readwrite":"ro","a":1}`, "{", `{"a":"b"}x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOptions(s)
		if (o == nil) == (err == nil) {
			t.Fatal(o, err)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("%d bytes of error", len(err.Error()))
		}
		if o != nil {
			for k := range o.User {
				if strings.HasPrefix(k, keyPrefix) {
					t.Errorf("%q is the protocol's", k)
				}
			}
		}
	})
}

func FuzzDirectories(f *testing.F) {
	for _, s := range []string{podDir, deviceDir, "/", "", "/k/pods/u/volumes/a~b/..", "/pods//volumes/~/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Dir, error){ParseMountDir, ParseDeviceDir} {
			d, err := parse(s)
			if err != nil {
				continue
			}
			if d.Path() != strings.TrimSuffix(s, "/") || d.Volume == "" || strings.Contains(d.Below, "..") && strings.Contains("/"+d.Below+"/", "/../") {
				t.Errorf("%q became %+v", s, d)
			}
		}
	})
}

// Whatever the arguments, there is one object, and its exit code agrees.
func FuzzServe(f *testing.F) {
	f.Add("init", "", "", "")
	f.Add("mount", podDir, "{}", "")
	f.Add("expandfs", "{}", "/dev/x", deviceDir)
	f.Add("unmountdevice", "/dev/x", "", "")
	f.Fuzz(func(t *testing.T, call, a, b, c string) {
		args := []string{"fake", call}
		for _, v := range []string{a, b, c} {
			if v != "" {
				args = append(args, v)
			}
		}
		s, _ := said(t, serve(args, table(fine), "v1", nil, time.Minute))
		if _, known := callouts[call]; !known && call != "--version" && s["status"] != NotSupported {
			t.Errorf("%v", s)
		}
	})
}
