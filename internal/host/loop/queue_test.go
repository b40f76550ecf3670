package loop

import (
	"slices"
	"testing"
)

func TestParseSchedulers(t *testing.T) {
	for line, want := range map[string]struct {
		all []string
		now string
	}{
		"[none] mq-deadline kyber bfq \n": {[]string{"none", "mq-deadline", "kyber", "bfq"}, "none"},
		"none [mq-deadline]\n":            {[]string{"none", "mq-deadline"}, "mq-deadline"},
		"none\n":                          {[]string{"none"}, ""},
		"":                                {nil, ""},
	} {
		if all, now := parseSchedulers(line); !slices.Equal(all, want.all) || now != want.now {
			t.Errorf("%q: %v, %q", line, all, now)
		}
	}
}
