//go:build component

package driver_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"berth.io/berth/test/apart"
)

func TestMain(m *testing.M) { apart.Run(m) }

// The namespace of the tests holds no loop device that is not theirs: here, one that is mounted outside.
func TestNothingOfOthersIsHeld(t *testing.T) {
	if theirs := os.Getenv("BERTH_TEST_THEIRS"); theirs != "" { // in the namespace of a run within this one
		mounts, err := apart.OfLoops()
		if err != nil || len(mounts) > 0 {
			t.Errorf("held: %v, %v", mounts, err)
		}
		return
	}
	s := start(t, 2<<30) // mounted here
	if mounts, err := apart.OfLoops(); err != nil || len(mounts) == 0 {
		t.Fatalf("no mount of %s: %v, %v", s.dir, mounts, err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestNothingOfOthersIsHeld$")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, apart.Env+"=") }), "BERTH_TEST_THEIRS=yes")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
