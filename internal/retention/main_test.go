package retention

import (
	"os"
	"testing"
)

// The fakes of the snapshot clients send no bookmarks, which a reflector that streams its list waits for.
func TestMain(m *testing.M) {
	os.Setenv("KUBE_FEATURE_WatchListClient", "false")
	os.Exit(m.Run())
}
