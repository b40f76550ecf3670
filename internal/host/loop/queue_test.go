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

func TestParseWritten(t *testing.T) {
	const stat = "     103        0     5440       26     7012        0    56096     2003        0     1184     2029        0        0        0        0       12        0\n"
	if n, err := bytesIn(stat, sectorsWritten); err != nil || n != 56096*512 {
		t.Errorf("%d, %v", n, err)
	}
	for _, stat := range []string{"", "1 2 3 4 5 6", "1 2 3 4 5 6 x", "1 2 3 4 5 6 -1", "1 2 3 4 5 6 9223372036854775807"} {
		if n, err := bytesIn(stat, sectorsWritten); err == nil {
			t.Errorf("%q: %d", stat, n)
		}
	}
}

func FuzzParseWritten(f *testing.F) {
	f.Add("1 2 3 4 5 6 7 8")
	f.Fuzz(func(t *testing.T, stat string) {
		if n, err := bytesIn(stat, sectorsWritten); err == nil && n < 0 {
			t.Errorf("%q: %d", stat, n)
		}
	})
}
