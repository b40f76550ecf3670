package pool

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidID(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "pvc-0a1b": true, strings.Repeat("a", 63): true, "0": true,
		"": false, ".": false, "..": false, "a/b": false, "../x": false, "A": false, "a_b": false, "-a": false, "a-": false,
		strings.Repeat("a", 64): false, "a\x00": false, "a\n": false, "volume.json": false, ".making-a": false, "é": false,
	} {
		if err := ValidID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func FuzzValidID(f *testing.F) {
	for _, s := range []string{"pvc-1", "..", "a/b", "a\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if ValidID(id) != nil {
			return
		}
		if p := filepath.Join("/pool/volumes", id); filepath.Dir(p) != "/pool/volumes" || strings.ContainsAny(id, "/.\x00\n ") {
			t.Errorf("%q leaves its directory: %s", id, p)
		}
	})
}

func FuzzParseVolume(f *testing.F) {
	good, _ := json.Marshal(Volume{Version: 1, ID: "v", SizeBytes: 1, SectorBytes: 512, Content: Fresh})
	f.Add(good)
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := parseVolume("v", data)
		if err != nil {
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		w, err := parseVolume("v", again)
		if err != nil || w.SizeBytes != v.SizeBytes || w.Content != v.Content {
			t.Errorf("%s does not survive writing: %v", data, err)
		}
	})
}

func TestParseVolumeRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":             ``,
		"another volume":      `{"version":1,"id":"w","sizeBytes":1,"sectorBytes":512,"content":"raw"}`,
		"a later version":     `{"version":2,"id":"v","sizeBytes":1,"sectorBytes":512,"content":"raw"}`,
		"no size":             `{"version":1,"id":"v","sectorBytes":512,"content":"raw"}`,
		"an unknown content":  `{"version":1,"id":"v","sizeBytes":1,"sectorBytes":512,"content":"?"}`,
		"an impossible block": `{"version":1,"id":"v","sizeBytes":1,"sectorBytes":100,"content":"raw"}`,
	} {
		if v, err := parseVolume("v", []byte(data)); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func FuzzParseMarker(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"abc"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := parseMarker(data); err == nil && (m.Version != markerVersion || ValidID(m.ID) != nil) {
			t.Errorf("%+v", m)
		}
	})
}
