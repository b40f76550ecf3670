package volume

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func TestClaimName(t *testing.T) {
	for name, c := range map[string]struct{ name, want string }{
		"a claim's name is kept":              {"data", "data"},
		"dots and dashes are kept":            {"db-0.shop", "db-0.shop"},
		"an anonymous volume of Docker":       {strings.Repeat("0a", 32), strings.Repeat("0a", 32)},
		"capitals and underscores":            {"My_Data", "my-data-4fea2b635c"},
		"the same but for the capitals":       {"my_data", "my-data-3d5b4a9e34"},
		"an end that no claim's name has":     {"data-", "data-a3ef3ed1f1"},
		"two dots, which no claim's name has": {"a..b", "a--b-ff3a8b7c1a"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ClaimName(c.name)
			if strings.Contains(c.want, "-") && got != c.name { // the digits are a hash: only their shape is told here
				if got[:len(got)-10] != c.want[:len(c.want)-10] {
					t.Errorf("got %s, want %s", got, c.want)
				}
				return
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// Whatever an engine may call a volume becomes a name that the API takes; names that differ stay different.
func FuzzClaimName(f *testing.F) {
	for _, n := range []string{"data", "My_Data", "my_data", "a..b", "-", "0", "A", "x.", strings.Repeat("Z", 240), strings.Repeat("z", 241)} {
		f.Add(n, "data")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if ValidateName(a) != nil || ValidateName(b) != nil {
			return
		}
		x, y := ClaimName(a), ClaimName(b)
		if errs := validation.IsDNS1123Subdomain(x); len(errs) > 0 {
			t.Errorf("%q became %q: %v", a, x, errs)
		}
		if (a == b) != (x == y) {
			t.Errorf("%q and %q became %q and %q", a, b, x, y)
		}
	})
}

func TestValidateName(t *testing.T) {
	for _, good := range []string{"a", "data", "My_Data", "0.x-y_z"} {
		if err := ValidateName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "_a", "-a", ".a", "a/b", "../etc", "a b", "ä", "a\n", strings.Repeat("a", 241)} {
		if err := ValidateName(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestNameOf(t *testing.T) {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "my-data-1"}}
	if got := NameOf(c); got != "my-data-1" {
		t.Errorf("a claim that kubectl made is called %s", got)
	}
	c.Annotations = map[string]string{NameAnnotation: "My_Data"}
	if got := NameOf(c); got != "My_Data" {
		t.Errorf("got %s", got)
	}
}
