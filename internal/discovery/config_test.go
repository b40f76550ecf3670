package discovery

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// The original's own example (its docs/provisioner.md), every key set.
var whole = map[string]string{
	keyClasses: `
fast-disks:
  hostDir: /mnt/fast-disks/
  mountDir: /mnt/fast
  blockCleanerCommand:
  - "/scripts/shred.sh"
  - "2"
  volumeMode: Filesystem
  accessMode: ReadWriteOncePod
  fsType: xfs
  namePattern: "disk*"
  selector:
  - matchExpressions: [{key: rack, operator: In, values: [a]}]
raw:
  hostDir: /mnt/raw
  mountDir: /mnt/raw
  volumeMode: Block
`,
	keyNodeLabels:  "- topology.kubernetes.io/zone\n",
	keyLabels:      "tier: fast\n",
	keyAlpha:       "true",
	keyJobs:        "true",
	keyTolerations: "- {operator: Exists}\n",
	keyResync:      "10m0s",
	keyNodeName:    "true",
	keyOwner:       "true",
	keyTaint:       "true",
	keyTaintKey:    "example.com/not-ready",
}

func TestEveryKeyIsReadOrNamed(t *testing.T) {
	c, err := ParseConfig(whole)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Class{
		"fast-disks": {HostDir: "/mnt/fast-disks", MountDir: "/mnt/fast", Mode: v1.PersistentVolumeFilesystem, AccessMode: v1.ReadWriteOncePod, FSType: "xfs",
			NamePattern: "disk*", BlockCleaner: cleaner{method: shred, passes: 2, written: []string{"/scripts/shred.sh", "2"}},
			Selector: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "rack", Operator: v1.NodeSelectorOpIn, Values: []string{"a"}}}}}},
		"raw": {HostDir: "/mnt/raw", MountDir: "/mnt/raw", Mode: v1.PersistentVolumeBlock, AccessMode: v1.ReadWriteOnce, NamePattern: "*", BlockCleaner: cleaner{written: []string{cleanQuick}}},
	}
	if !reflect.DeepEqual(c.Classes, want) {
		t.Errorf("classes:\n%+v\nwant\n%+v", c.Classes, want)
	}
	if !c.UseJobs || len(c.JobTolerations) != 1 || c.JobTolerations[0].Operator != v1.TolerationOpExists || c.MinResync != 10*time.Minute || !c.UseNodeNameOnly || !c.SetOwner || c.NotReadyTaint != "example.com/not-ready" ||
		c.Labels["tier"] != "fast" || len(c.NodeLabels) != 1 {
		t.Errorf("%+v", c)
	}
	notes := strings.Join(c.Notes, "\n")
	if !strings.Contains(notes, keyAlpha) {
		t.Errorf("%s is neither done nor named: %s", keyAlpha, notes)
	}
}

func TestWrongConfigurationNamesTheField(t *testing.T) {
	class := func(lines ...string) map[string]string {
		base := map[string]string{"hostDir": "/mnt/a", "mountDir": "/mnt/a"}
		for _, l := range lines {
			k, v, _ := strings.Cut(l, ": ")
			base[k] = v
		}
		text := "c:\n"
		for k, v := range base {
			if v != "-" {
				text += "  " + k + ": " + v + "\n"
			}
		}
		return map[string]string{keyClasses: text}
	}
	with := func(key, value string) map[string]string {
		m := class()
		m[key] = value
		return m
	}
	for name, tc := range map[string]struct {
		data map[string]string
		want []string
	}{
		"no classes":               {map[string]string{}, []string{keyClasses, "missing"}},
		"classes that are a list":  {map[string]string{keyClasses: "- a"}, []string{keyClasses, "cannot unmarshal array"}},
		"broken YAML":              {map[string]string{keyClasses: "a: [b"}, []string{keyClasses}},
		"a key that is none":       {with("storageClasMap", "x"), []string{"storageClasMap", "no such key", keyClasses}},
		"the Jobs' image":          {with(keyImage, "x"), []string{keyImage, "JOB_CONTAINER_IMAGE"}},
		"tolerations":              {with(keyTolerations, "{}"), []string{keyTolerations}},
		"a field that is none":     {class("namePatern: x"), []string{keyClasses, "namePatern"}},
		"a class's name":           {map[string]string{keyClasses: "Fast_Disks: {hostDir: /a, mountDir: /a}"}, []string{"Fast_Disks"}},
		"no hostDir":               {class("hostDir: -"), []string{"c: hostDir", "missing"}},
		"no mountDir":              {class("mountDir: -"), []string{"c: mountDir", "missing"}},
		"a relative hostDir":       {class("hostDir: mnt"), []string{"c: hostDir", "absolute"}},
		"a hostDir with ..":        {class("hostDir: /mnt/../etc"), []string{"c: hostDir", ".."}},
		"a mountDir with ..":       {class("mountDir: /mnt/.."), []string{"c: mountDir", ".."}},
		"the root":                 {class("hostDir: //"), []string{"c: hostDir"}},
		"volumeMode":               {class("volumeMode: block"), []string{"c: volumeMode", "block"}},
		"accessMode":               {class("accessMode: RWO"), []string{"c: accessMode", "RWO"}},
		"fsType":                   {class("fsType: ext4 -o"), []string{"c: fsType"}},
		"a pattern":                {class(`namePattern: "[a"`), []string{"c: namePattern"}},
		"a pattern with a slash":   {class("namePattern: a/*"), []string{"c: namePattern", "slash"}},
		"an empty command":         {class("blockCleanerCommand: []"), []string{"c: blockCleanerCommand", "empty"}},
		"a command that is a line": {class("blockCleanerCommand: /bin/true"), []string{keyClasses, "blockCleanerCommand"}},
		"a command not there":      {class("blockCleanerCommand: [/scripts/mine.sh]"), []string{"c: blockCleanerCommand", "/scripts/mine.sh"}},
		"a relative command":       {class("blockCleanerCommand: [shred]"), []string{"c: blockCleanerCommand", "absolute"}},
		"a command that can't run": {class("blockCleanerCommand: [/etc/passwd]"), []string{"c: blockCleanerCommand", "run"}},
		"passes of shred":          {class("blockCleanerCommand: [/scripts/shred.sh, many]"), []string{"c: blockCleanerCommand", "many"}},
		"an empty term":            {class("selector: [{}]"), []string{"c: selector", "empty"}},
		"the same directory":       {map[string]string{keyClasses: "a: {hostDir: /m, mountDir: /m}\nb: {hostDir: /m/, mountDir: /n}"}, []string{"b: hostDir", "a"}},
		"useAlphaAPI":              {with(keyAlpha, "maybe"), []string{keyAlpha}},
		"setPVOwnerRef in quotes":  {with(keyOwner, `"true"`), []string{keyOwner}},
		"minResyncPeriod":          {with(keyResync, "soon"), []string{keyResync}},
		"minResyncPeriod below 0":  {with(keyResync, "-5m"), []string{keyResync}},
		"nodeLabelsForPV":          {with(keyNodeLabels, "- a b"), []string{keyNodeLabels, "a b"}},
		"labelsForPV":              {with(keyLabels, "a: b c"), []string{keyLabels, "b c"}},
		"a taint without its key":  {with(keyTaint, "true"), []string{keyTaintKey}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig(tc.data)
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q: %v", w, err)
				}
			}
		})
	}
}

// Two classes may part one directory by pattern.
func TestOneDirectoryForTwoPatterns(t *testing.T) {
	if _, err := ParseConfig(map[string]string{keyClasses: "a: {hostDir: /m, mountDir: /m, namePattern: hdd*}\nb: {hostDir: /m, mountDir: /m, namePattern: ssd*}"}); err != nil {
		t.Error(err)
	}
}

func TestCleaners(t *testing.T) {
	for name, tc := range map[string]struct {
		command []string
		want    cleaner
		note    string
	}{
		"quick":              {[]string{cleanQuick}, cleaner{method: quick}, ""},
		"discard":            {[]string{cleanDiscard}, cleaner{method: discard}, ""},
		"zeros":              {[]string{cleanZero}, cleaner{method: zero}, ""},
		"shred by default":   {[]string{cleanShred}, cleaner{method: shred, passes: 3}, ""},
		"shred":              {[]string{cleanShred, "1"}, cleaner{method: shred, passes: 1}, ""},
		"for directories":    {[]string{cleanFS}, cleaner{method: quick}, cleanFS},
		"arguments not used": {[]string{cleanZero, "x"}, cleaner{method: zero}, "ignored"},
		"a program":          {[]string{"/bin/sh", "-c", "x"}, cleaner{method: external, command: []string{"/bin/sh", "-c", "x"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tc.want.written = tc.command
			c, note, err := newCleaner(tc.command, false)
			if err != nil || !reflect.DeepEqual(c, tc.want) || !strings.Contains(note, tc.note) || (tc.note == "") != (note == "") {
				t.Errorf("%+v, %q, %v", c, note, err)
			}
		})
	}
}

const manifest = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: a}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {x: y}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: local-provisioner-config}
data:
  storageClassMap: |
    a: {hostDir: /m, mountDir: /m}
`

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) string {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// As a kubelet mounts a ConfigMap.
	write("mounted/..2026/storageClassMap", "a: {hostDir: /m, mountDir: /m}")
	for name, to := range map[string]string{"..data": "..2026", "storageClassMap": "..data/storageClassMap"} {
		if err := os.Symlink(to, filepath.Join(dir, "mounted", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range map[string]string{"a manifest": write("m.yaml", manifest), "a directory": filepath.Join(dir, "mounted")} {
		c, err := ReadConfig(path)
		if err != nil || c.Classes["a"].HostDir != "/m" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	for name, tc := range map[string]struct{ path, want string }{
		"no file":             {filepath.Join(dir, "none"), "no such file"},
		"nothing in it":       {write("empty.yaml", ""), keyClasses},
		"no ConfigMap":        {write("class.yaml", manifest[:strings.Index(manifest, "---")]), keyClasses},
		"two of them":         {write("two.yaml", manifest+"---"+manifest), "leave one"},
		"an unknown field":    {write("field.yaml", strings.Replace(manifest, "data:\n  storage", "datas: {}\ndata:\n  storage", 1)), "datas"},
		"too large":           {write("large.yaml", strings.Repeat("# x\n", 300000)), "1 MiB"},
		"an empty directory":  {t.TempDir(), keyClasses},
		"an error in a class": {write("bad.yaml", strings.Replace(manifest, "/m,", "m,", 1)), "hostDir"},
	} {
		if _, err := ReadConfig(tc.path); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(whole[keyClasses], whole[keyLabels], "5m", "true")
	f.Add("a: {hostDir: /m, mountDir: /m, blockCleanerCommand: [/scripts/shred.sh, '2']}", "", "", "")
	f.Fuzz(func(t *testing.T, classes, labels, resync, owner string) {
		c, err := ParseConfig(map[string]string{keyClasses: classes, keyLabels: labels, keyResync: resync, keyOwner: owner})
		if err != nil {
			return
		}
		for name, class := range c.Classes {
			for _, dir := range []string{class.HostDir, class.MountDir} {
				if !filepath.IsAbs(dir) || dir == "/" || filepath.Clean(dir) != dir {
					t.Errorf("%s: directory %q", name, dir)
				}
			}
			if _, err := filepath.Match(class.NamePattern, "x"); err != nil {
				t.Errorf("%s: pattern %q", name, class.NamePattern)
			}
			if class.BlockCleaner.method == external && !filepath.IsAbs(class.BlockCleaner.command[0]) {
				t.Errorf("%s: command %q", name, class.BlockCleaner.command)
			}
		}
		if c.MinResync <= 0 {
			t.Errorf("resync %s", c.MinResync)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(manifest))
	f.Add([]byte("kind: ConfigMap\ndata: {storageClassMap: ''}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		data, err := manifestData(b)
		if _, has := data[keyClasses]; err == nil && !has {
			t.Error("no classes and no error")
		}
	})
}
