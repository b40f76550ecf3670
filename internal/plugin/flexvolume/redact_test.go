package flexvolume

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	secrets := map[string][]byte{"password": []byte("it's s3cret/+="), "key": []byte("-----BEGIN KEY-----\nMIIBOgIBAAJB\n-----END KEY-----\n")}
	r := newRedactor(secrets)
	for name, text := range map[string]string{
		"as it is":          "login with it's s3cret/+= failed",
		"base64":            "option " + base64.StdEncoding.EncodeToString(secrets["password"]),
		"base64 unpadded":   base64.RawURLEncoding.EncodeToString(secrets["password"]),
		"quoted by a shell": `+ mount -o 'password=it'\''s s3cret/+='`,
		"in a URL":          "GET /?p=" + url.QueryEscape("it's s3cret/+="),
		"one line of many":  "cannot parse MIIBOgIBAAJB",
		"all of its lines":  string(secrets["key"]),
		"the whole, base64": base64.StdEncoding.EncodeToString(secrets["key"]),
		"twice":             "it's s3cret/+= it's s3cret/+=",
	} {
		got := r.clean(text)
		for _, w := range []string{"s3cret", "MIIB", "aXQncyBzM2NyZXQ", "s3cret%2F"} {
			if strings.Contains(got, w) {
				t.Errorf("%s: %q", name, got)
			}
		}
		if !strings.Contains(got, hidden) {
			t.Errorf("%s: nothing was hidden in %q", name, got)
		}
	}
	if got := r.clean("no such export"); got != "no such export" {
		t.Errorf("what is no secret became %q", got)
	}
	if got := newRedactor(map[string][]byte{"pin": []byte("7")}).clean("refused: 7"); strings.Contains(got, "7") {
		t.Errorf("short secret: %q", got)
	}
	if got := newRedactor(map[string][]byte{"json": []byte("{\n\"a\": \"wert\"\n}")}).clean("status {}"); got != "status {}" {
		t.Errorf("a bracket of a larger secret hid %q", got)
	}
	if got := (redactor{}).clean("as it is"); got != "as it is" {
		t.Error(got)
	}
}
