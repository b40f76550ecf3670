package volume

import (
	"errors"
	"strings"
	"testing"
)

func TestParseOptions(t *testing.T) {
	for name, c := range map[string]struct {
		given map[string]string
		want  string // of the request, or a part of the refusal
		bad   bool
	}{
		"nothing is asked for":       {nil, "no options", false},
		"size":                       {map[string]string{"size": "10Gi"}, "size=10Gi", false},
		"all that go together":       {map[string]string{"size": "1Gi", "class": "fast", "fsType": "xfs", "clone": "Old_One"}, "class=fast clone=Old_One fsType=xfs size=1Gi", false},
		"capitals do not matter":     {map[string]string{"SIZE": "1Gi", "fstype": "ext4"}, "fsType=ext4 size=1Gi", false},
		"a banana":                   {map[string]string{"size": "banana"}, `size "banana" is not a size such as 10Gi`, true},
		"Docker's own units":         {map[string]string{"size": "10GB"}, "is not a size", true},
		"nothing":                    {map[string]string{"size": "0"}, "more than nothing", true},
		"less than nothing":          {map[string]string{"size": "-1Gi"}, "more than nothing", true},
		"thousandths of a byte":      {map[string]string{"size": "500m"}, "write 500M or 500Mi", true},
		"more than any disk":         {map[string]string{"size": "100Ei"}, "more than any disk", true},
		"an empty size":              {map[string]string{"size": ""}, "option size is empty", true},
		"an option that is not ours": {map[string]string{"sizze": "1Gi"}, `unknown option "sizze"; the options are class, clone, fsType, size, snapshot`, true},
		"twice":                      {map[string]string{"size": "1Gi", "Size": "2Gi"}, "given twice", true},
		"two sources":                {map[string]string{"snapshot": "a", "clone": "b"}, "exclude each other", true},
		"a filesystem with a space":  {map[string]string{"fsType": "ext4 -F"}, "not the name of a filesystem", true},
		"a clone of a path":          {map[string]string{"clone": "../x"}, "clone: volume name", true},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseOptions("data", c.given)
			got := inWords(optionsText(r.given()))
			var refused *RefusedError
			if err != nil {
				if got = err.Error(); !errors.As(err, &refused) {
					t.Errorf("not told as the user's: %v", err)
				}
			}
			if (err != nil) != c.bad || !strings.Contains(got, c.want) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("data", "size", "1Gi", "class", "a")
	f.Add("My_Data", "SIZE", "banana", "snapshot", "x")
	f.Add("", "size", "9999999999Ei", "clone", "..")
	f.Fuzz(func(t *testing.T, name, k1, v1, k2, v2 string) {
		r, err := ParseOptions(name, map[string]string{k1: v1, k2: v2})
		if err != nil {
			return
		}
		if r.Size != nil && r.Size.Value() <= 0 {
			t.Errorf("size %s is %d", r.Size, r.Size.Value())
		}
		if ValidateName(r.Name) != nil {
			t.Errorf("name %q was taken", r.Name)
		}
		again, err := ParseOptions(name, r.given())
		if err != nil || optionsText(again.given()) != optionsText(r.given()) {
			t.Errorf("%v read again: %v %v", r.given(), again.given(), err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"path":"/srv/data","namespace":"default","name":"data","since":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"path":"/","namespace":"default","name":"data"}`))
	f.Add([]byte(`{"path":"/srv/../etc","namespace":"default","name":"data"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseRecord("record", b)
		if err == nil && (m.Path == "/" || !strings.HasPrefix(m.Path, "/") || strings.Contains(m.Path, "/../")) {
			t.Errorf("root would mount at %q", m.Path)
		}
	})
}
