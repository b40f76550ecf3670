package migrate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/host/durable"
)

func someRecord(state state) *record {
	flex := flexVolume()
	return &record{Version: recordVersion, State: state, Created: time.Unix(1, 0).UTC(), Cluster: "here", UID: flex.UID, Policy: flex.Spec.PersistentVolumeReclaimPolicy,
		Flex: manifest(flex), CSI: toCSI(flex, CSIBlock, nil)}
}

func TestAnUndoFileIsReadAsItWasWritten(t *testing.T) {
	f, err := openFolder(filepath.Join(t.TempDir(), "undo"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	r := someRecord(migrating)
	r.path = f.newRecord(flexVolume())
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(r.path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	found, err := f.records("here")
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	a, _ := json.Marshal(r)
	b, _ := json.Marshal(found[0])
	if string(a) != string(b) || found[0].path != r.path {
		t.Errorf("wrote %s\nread %s", a, b)
	}
	if found, err := f.records("elsewhere"); err != nil || len(found) != 0 {
		t.Errorf("a record of another cluster is found: %v, %v", found, err)
	}
	if _, err := openFolder(f.dir); err == nil || !strings.Contains(err.Error(), "at work") {
		t.Errorf("a second run: %v", err)
	}
}

// A directory that is made is on the disk when its first file is: each one whose content has changed is synced, the deepest first.
func TestTheDirectoriesThatAreMadeAreSynced(t *testing.T) {
	top := t.TempDir()
	for _, one := range []struct {
		dir  string
		want []string
	}{
		{"a/b/c", []string{"a/b", "a", "."}},
		{"a/b/c", nil},
		{"a/d", []string{"a"}},
	} {
		var synced []string
		err := makeDir(filepath.Join(top, one.dir), func(dir string) error {
			if fi, err := os.Stat(filepath.Join(top, one.dir)); err != nil || !fi.IsDir() {
				t.Errorf("%s is synced before all is made", dir)
			}
			rel, err := filepath.Rel(top, dir)
			synced = append(synced, rel)
			return err
		})
		if err != nil || !slices.Equal(synced, one.want) {
			t.Errorf("%s: synced %q, %v; want %q", one.dir, synced, err, one.want)
		}
	}
	if err := durable.SyncDirectory(top); err != nil {
		t.Error(err)
	}
	if f, err := openFolder(filepath.Join(top, "x/y")); err != nil {
		t.Error(err)
	} else {
		f.close()
	}
}

// A name as long as the API allows still gives a file.
func TestTheFileOfALongName(t *testing.T) {
	pv := flexVolume()
	pv.Name, pv.UID = strings.Repeat("a", 253), "12345678-1234-1234-1234-123456789abc"
	if name := filepath.Base((&folder{dir: "/x"}).newRecord(pv)); len(name)+len(".new") > 255 {
		t.Errorf("%d bytes", len(name))
	}
}

func TestUndoFilesThatAreRefused(t *testing.T) {
	for name, change := range map[string]func(*record){
		"another version":   func(r *record) { r.Version++ },
		"no state":          func(r *record) { r.State = "" },
		"no cluster":        func(r *record) { r.Cluster = "" },
		"no uid":            func(r *record) { r.UID = "" },
		"no policy":         func(r *record) { r.Policy = "" },
		"no FlexVolume":     func(r *record) { r.Flex = nil },
		"no CSI":            func(r *record) { r.CSI = nil },
		"forms exchanged":   func(r *record) { r.Flex, r.CSI = r.CSI, r.Flex },
		"two volumes":       func(r *record) { r.CSI.Name = "other" },
		"a volume unnamed":  func(r *record) { r.CSI.Name, r.Flex.Name = "", "" },
		"an unknown state":  func(r *record) { r.State = "done" },
		"a form of a third": func(r *record) { r.CSI.Spec.CSI = nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := someRecord(migrated)
			change(r)
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseRecord(b); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := parseRecord([]byte(`{"version":1,"more":2}`)); err == nil {
		t.Error("an unknown field is accepted")
	}
}

// Whatever a file holds, a record that is read has two forms of one volume.
func FuzzParseRecord(f *testing.F) {
	for _, s := range []state{migrating, undone} {
		b, err := json.Marshal(someRecord(s))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		to, from := r.wants()
		if to.Name == "" || to.Name != from.Name || sameSource(to, from) {
			t.Errorf("%+v and %+v", to.ObjectMeta, from.ObjectMeta)
		}
		_, _ = describe(to), describe(from)
	})
}
