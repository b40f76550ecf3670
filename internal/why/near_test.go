package why

import (
	"errors"
	"slices"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNear: what may have been meant by a name that is not there.
func TestNear(t *testing.T) {
	elsewhere := claim("ledger", "c")
	elsewhere.Namespace = "shop"
	client := fake.NewClientset(claim("quickstart", "c"), claim("data-db-0", "c"), claim("data-db-1", "c"), claim("a", "c"), elsewhere,
		pod("web", "n1"), pod("db-0", "n1"), volume("quickstart"), class("c", storagev1.VolumeBindingImmediate))
	for _, c := range []struct {
		name string
		ask  Target
		want []string
	}{
		{"two letters swapped", Target{PVC, "default", "quickstrat"}, []string{"pvc/quickstart"}},
		{"a letter left out", Target{PVC, "default", "quickstar"}, []string{"pvc/quickstart"}},
		{"the beginning alone", Target{PVC, "default", "data-db"}, []string{"pvc/data-db-0", "pvc/data-db-1"}},
		{"another namespace", Target{PVC, "default", "ledger"}, []string{"-n shop pvc/ledger"}},
		{"the default namespace", Target{PVC, "shop", "quickstart"}, []string{"-n default pvc/quickstart"}},
		{"another kind", Target{PVC, "default", "web"}, []string{"pod/web"}},
		{"a claim taken for a volume", Target{PV, "", "quickstart"}, []string{"pvc/quickstart", "pv/pvc-quickstart-uid"}},
		{"nothing like it", Target{PVC, "default", "zebra"}, nil},
		{"one letter is like nothing", Target{PVC, "default", "xyz"}, nil},
	} {
		got := Near(t.Context(), client, c.ask)
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	_, err := Explain(t.Context(), Sources{Client: client}, Target{PVC, "default", "quickstrat"})
	var unknown *ErrUnknown
	if !errors.As(err, &unknown) || !strings.HasSuffix(err.Error(), "did you mean pvc/quickstart?") {
		t.Error(err)
	}
	_, err = Explain(t.Context(), Sources{Client: client}, Target{PVC, "shpo", "nothing"})
	if err == nil || !strings.Contains(err.Error(), "there is no namespace shpo") {
		t.Error(err)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"ab", "ba", 1}, {"quickstart", "quickstrat", 1}, {"data", "date", 1}, {"web", "db", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// FuzzDistance: names come from the command line.
func FuzzDistance(f *testing.F) {
	f.Add("quickstart", "quickstrat")
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a) > 300 || len(b) > 300 {
			return
		}
		if d := distance(a, b); d != distance(b, a) || (d == 0) != (a == b) || d > max(len(a), len(b)) {
			t.Errorf("%q %q: %d", a, b, d)
		}
	})
}
