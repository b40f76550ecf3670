package nodepool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What was given once holds until something else is given.
func TestSizeIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool-size")
	for i, c := range []struct {
		asked string
		want  int64
	}{{"", 0}, {"6Gi", 6 << 30}, {"", 6 << 30}, {"8Gi", 8 << 30}, {"", 8 << 30}} {
		if got, err := Size(path, c.asked); err != nil || got != c.want {
			t.Errorf("start %d with %q: %d, %v; want %d", i, c.asked, got, err, c.want)
		}
	}
	if _, err := Size(path, "banana"); err == nil {
		t.Error("banana is a size")
	}
	if got, err := Size(path, ""); err != nil || got != 8<<30 {
		t.Errorf("after a wrong one: %d, %v", got, err)
	}
	for what, content := range map[string]string{"damaged": "half of it", "emptied by a power failure": ""} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Size(path, ""); err == nil || !strings.Contains(err.Error(), "--pool-size") {
			t.Errorf("a file that is %s: %d, %v", what, got, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "1Gi": 1 << 30, "500M": 500_000_000, "banana": -1, "0": -1, "-1Gi": -1} {
		got, err := ParseSize(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("ParseSize(%q) = %d, %v", text, got, err)
		}
	}
}
