package flexsocket

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNotes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "block")
	n, err := openNotes(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []note{
		{Volume: "a", Name: "pv", Node: "n"},
		{Volume: "b", Name: "pv", Node: "n", Staged: "/staged/b", Published: []string{"/1", "/2"}},
		{Volume: "c", Staged: "/staged/c"},
	} {
		if err := n.put(one); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.attachedAs("pv"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("attached as pv: %q", got)
	}
	for path, want := range map[string]string{"/staged/b": "b", "/2": "b", "/staged/c": "c", "/none": ""} {
		if got := n.at(path); got != want {
			t.Errorf("at %s: %q, want %q", path, got, want)
		}
	}
	// What is handed out is nobody else's.
	b := n.get("b")
	b.Published[0] = "/changed"
	if n.at("/1") != "b" {
		t.Error("a change that was not put is there")
	}
	if err := n.put(note{Volume: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "c.json")); !os.IsNotExist(err) {
		t.Errorf("a note that says nothing is there: %v", err)
	}
	again, err := openNotes(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := again.get("a"), again.get("b"); a.Node != "n" || b.Node != "n" || b.Staged != "" || len(b.Published) != 0 {
		t.Errorf("read again: %+v, %+v; want both attached, and mounts that are not there forgotten", a, b)
	}
}

func TestADamagedNoteLeavesTheOthers(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a.json":     `{"volume":"a","name":"pv","node":"n"}`,
		"b.json":     `{"volume":`,
		"c.json":     `{"volume":"a","node":"n"}`,
		"d.json.new": `{"volume":"d"`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	n, err := openNotes(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := n.attachedAs("pv"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("attached: %q", got)
	}
	if !strings.Contains(log.String(), "b.json") || !strings.Contains(log.String(), "c.json") || strings.Contains(log.String(), ".new") {
		t.Errorf("log: %s", &log)
	}
}

// Whatever a file holds, a note that is read names paths and names that are safe to use, and can be written again as it is.
func FuzzParseNote(f *testing.F) {
	f.Add("a", []byte(`{"volume":"a","name":"pv","node":"n","staged":"/s","published":["/1","/2"]}`))
	f.Add("..", []byte(`{"volume":".."}`))
	f.Add("a", []byte(`{"volume":"a","published":[""]}`))
	f.Fuzz(func(t *testing.T, id string, b []byte) {
		n, err := parseNote(id, b)
		if err != nil {
			return
		}
		if n.Volume != id || strings.ContainsAny(id, "/\x00") || id == "" || id == ".." {
			t.Errorf("volume %q in the file of %q", n.Volume, id)
		}
		for _, p := range n.Published {
			if p == "" || p[0] != '/' {
				t.Errorf("published at %q", p)
			}
		}
		text, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseNote(id, text); err != nil || again.Staged != n.Staged || !slices.Equal(again.Published, n.Published) {
			t.Errorf("%+v became %+v, %v", n, again, err)
		}
	})
}
