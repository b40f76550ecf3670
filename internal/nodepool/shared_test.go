package nodepool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/node/flexsocket"
)

// A volume that pods use through its FlexVolume driver is no business of the CSI driver and of the node's agent, which sees at each start
// that nothing asks it to keep the volume attached: it must not take the attachment away.
func TestFlexVolumesAttachmentIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	notes := filepath.Join(dir, "notes", "block")
	if err := os.MkdirAll(notes, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(notes, "vol-1.json"), []byte(`{"volume":"vol-1","name":"pv","node":"node-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	flex, err := flexsocket.New(flexsocket.Options{Socket: filepath.Join(dir, "s"), Notes: filepath.Dir(notes), Backends: map[string]backend.Backend{"block": nil}})
	if err != nil {
		t.Fatal(err)
	}
	b := &Shared{flex: flex} // a call of the backend itself would be one of nil
	if err := b.Detach(t.Context(), "vol-1", ""); err != nil {
		t.Error(err)
	}
	if err := b.Attach(t.Context(), "vol-1", "node-1", false); !errors.Is(err, backend.ErrInUse) {
		t.Error(err)
	}
}
