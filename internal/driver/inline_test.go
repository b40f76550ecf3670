package driver

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestInlineSize(t *testing.T) {
	for s, want := range map[string]int64{"1Gi": 1 << 30, "500M": 500e6, "1Pi": 1 << 50, "1048576": 1 << 20, "1.5Gi": 3 << 29} {
		if got, err := inlineSize(map[string]string{"size": s, contextEphemeral: "true"}); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	if got, err := inlineSize(nil); err != nil || got != DefaultInlineBytes {
		t.Errorf("no size: %d, %v", got, err)
	}
	for name, attributes := range map[string]map[string]string{
		"a fruit": {"size": "banana"}, "nothing": {"size": ""}, "zero": {"size": "0"}, "negative": {"size": "-1Gi"}, "half a byte": {"size": "0.5"},
		"beyond any number": {"size": "9E40"}, "another name": {"Size": "1Gi"}, "another attribute": {"size": "1Gi", "replicas": "2"},
	} {
		if got, err := inlineSize(attributes); status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), "volume_context") {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
}

func FuzzInlineSize(f *testing.F) {
	f.Add("1Gi")
	f.Add("1e3")
	f.Fuzz(func(t *testing.T, s string) {
		if size, err := inlineSize(map[string]string{"size": s}); err == nil && size <= 0 {
			t.Errorf("%q is %d bytes", s, size)
		}
	})
}

// Notes are read back as they were written; one that was half written is none, nor is one in another's place.
func TestInlineNotes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "inline")
	n, err := openInlineNotes(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	note := inlineNote{Handle: "csi-1/../../etc", Target: "/pods/x/mount", SizeBytes: 1 << 20, FSType: "ext4"}
	if err := n.put(note); err != nil {
		t.Fatal(err)
	}
	draft := n.directory("half")
	if err := os.MkdirAll(draft, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(draft, "."+noteFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := openInlineNotes(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := again.get(note.Handle); !ok || got != note || len(again.all()) != 1 {
		t.Errorf("read back: %+v", again.all())
	}
	for range 2 {
		if err := again.remove(note.Handle); err != nil {
			t.Fatal(err)
		}
	}
	if again.has(note.Handle) {
		t.Error("forgotten, and known")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	if err := os.WriteFile(filepath.Join(draft, noteFile), []byte(`{"Handle":"other","Target":"/x","SizeBytes":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := openInlineNotes(dir, slog.New(slog.DiscardHandler)); err != nil || again.has("other") {
		t.Errorf("a note in another's place counts: %v", err)
	}
}

func FuzzParseNote(f *testing.F) {
	f.Add([]byte(`{"Handle":"h","Target":"/x","SizeBytes":1,"FSType":"ext4"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := parseNote(b); err == nil && (n.Handle == "" || !filepath.IsAbs(n.Target) || n.SizeBytes <= 0) {
			t.Errorf("accepted %+v", n)
		}
	})
}
