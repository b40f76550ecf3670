package boundaries

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A step that no kill point knows would be a step that the kill test does not test.
func TestEveryEffectStandsInsideABoundary(t *testing.T) {
	found, bare, err := Scan(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 20 {
		t.Fatalf("only %d boundaries were found: the scan does not see the rooms", len(found))
	}
	for _, b := range bare {
		t.Errorf("%s: %s stands outside boundary.Do; wrap it, or say %q in the doc comment of a function whose callers hold one", b.Position, b.Call, HeldByCaller)
	}
}

func TestBoundaryNamesAreUniqueLiterals(t *testing.T) {
	found, _, err := Scan(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^[a-z]+(-[a-z]+)*/[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := map[string]string{}
	for _, b := range found {
		if !form.MatchString(b.Name) {
			t.Errorf("%s: boundary %q is not a literal of the form room/effect", b.Position, b.Name)
		}
		if at, twice := seen[b.Name]; twice {
			t.Errorf("%s: boundary %q stands at %s too", b.Position, b.Name, at)
		}
		seen[b.Name] = b.Position
	}
}

// The scan itself can fail: each kind of bare effect is found, and none inside a boundary.
func TestScanFindsBareEffects(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "internal", "room")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	src := `package room

func bare(ctx context.Context) {
	client.CoreV1().Pods("ns").Create(ctx, pod, opts)
	node.NodeStageVolume(ctx, req)
	unix.Mount("a", "b", "", 0, "")
}

func held(ctx context.Context) error {
	return boundary.Do("room/create-pod", func() error {
		_, err := client.CoreV1().Pods("ns").Create(ctx, pod, opts)
		return err
	})
}

// mount is called by stage alone; boundary: held by the caller.
func mount() { unix.Mount("a", "b", "", 0, "") }

func asks(ctx context.Context) { client.AuthenticationV1().TokenReviews().Create(ctx, review, opts) }

func reads(ctx context.Context) { client.CoreV1().Pods("ns").Get(ctx, "x", opts) }
`
	if err := os.WriteFile(filepath.Join(dir, "room.go"), []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	found, bare, err := Scan(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != "room/create-pod" {
		t.Errorf("found %v, want room/create-pod alone", found)
	}
	var calls []string
	for _, b := range bare {
		calls = append(calls, b.Call)
	}
	want := []string{"API Create", "RPC NodeStageVolume", "unix.Mount"}
	if len(calls) != len(want) {
		t.Fatalf("bare effects %v, want %v", calls, want)
	}
	for i := range want {
		if calls[i] != want[i] {
			t.Errorf("bare effect %d is %q, want %q", i, calls[i], want[i])
		}
	}
}
