package why

import (
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"
)

// TestProblemOfItsStorage: what the storage's own object says of a volume is told, of the volume that is asked about and no other.
func TestProblemOfItsStorage(t *testing.T) {
	objects := cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true))
	for _, target := range []string{"pvc/data", "pod/app", "pv/pvc-data-uid"} {
		want, err := ParseTarget("default", target)
		if err != nil {
			t.Fatal(err)
		}
		var asked []string
		j, err := Explain(t.Context(), Sources{Client: fake.NewClientset(objects...), Now: at(time.Minute), Problem: func(driver, handle string) string {
			asked = append(asked, driver+" "+handle)
			return "its data are not in the pool any more"
		}}, want)
		if err != nil {
			t.Fatal(err)
		}
		p := j.Volumes[0].Problem
		if p == nil || p.Cause != "volume-not-well" || !strings.Contains(p.What, "not in the pool any more") || p.From != "its storage's object" {
			t.Errorf("%s: %+v", target, p)
		}
		if len(asked) == 0 || asked[0] != "block.csi.berth.io "+volume("data").Spec.CSI.VolumeHandle {
			t.Errorf("%s: asked for %q", target, asked)
		}
	}
}
