package try

import (
	"strings"
	"testing"
)

// A secret that begins as another one does must not show its end.
func TestSecretsThatBeginAlike(t *testing.T) {
	r := newRedactor([]string{"hunter", "hunter22-rest", "hunter22"})
	for _, said := range []string{"hunter", "hunter22", "hunter22-rest", "it is hunter22-rest."} {
		have := r.text(said)
		if strings.Contains(have, "22") || strings.Contains(have, "rest") || !strings.Contains(have, stripped) {
			t.Errorf("%q became %q", said, have)
		}
	}
}
