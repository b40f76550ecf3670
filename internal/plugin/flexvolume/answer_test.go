package flexvolume

import (
	"strings"
	"testing"
	"unicode"
)

func TestParseAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		out  string
		want answer // without capabilities
		err  string
	}{
		"success":                        {`{"status":"Success"}`, answer{Status: "Success"}, ""},
		"a blank line around it":         {"\n {\"status\":\"Success\"}\n\n", answer{Status: "Success"}, ""},
		"keys in another case":           {`{"Status":"Success","Device":"/dev/x"}`, answer{Status: "Success", Device: "/dev/x"}, ""},
		"every field":                    {`{"status":"Success","message":"m","device":"d","volumeName":"n","attached":true,"volumeNewSize":7,"warning":"w"}`, answer{Status: "Success", Message: "m", Device: "d", VolumeName: "n", Attached: true, NewSize: 7, Warning: "w"}, ""},
		"unknown fields":                 {`{"status":"Success","more":{"a":[1]}}`, answer{Status: "Success"}, ""},
		"no status":                      {`{}`, answer{}, ""},
		"nothing":                        {"", answer{}, "answered nothing"},
		"rubbish before it":              {"mount: done\n{\"status\":\"Success\"}", answer{}, "something else before its answer"},
		"rubbish after it":               {"{\"status\":\"Success\"}\nbye", answer{}, "syntax error at byte"},
		"two answers":                    {`{"status":"Success"}{"status":"Failure"}`, answer{}, "syntax error at byte"},
		"an array":                       {`[{"status":"Success"}]`, answer{}, "something else"},
		"cut off":                        {`{"status":"Succ`, answer{}, "syntax error"},
		"a number for a text":            {`{"status":7}`, answer{}, "status is a number where a string belongs"},
		"a text for a truth":             {`{"status":"Success","attached":"geheim"}`, answer{}, "attached is a string where a bool belongs"},
		"a line break in the device":     {`{"status":"Success","device":"/dev/x\n"}`, answer{}, "control characters"},
		"a zero in the device":           {`{"status":"Success","device":"/dev/\u0000"}`, answer{}, "control characters"},
		"a device without end":           {`{"status":"Success","device":"` + strings.Repeat("x", deviceLimit+1) + `"}`, answer{}, "more than"},
		"a negative size":                {`{"status":"Success","volumeNewSize":-1}`, answer{}, "volumeNewSize"},
		"a size that is no whole number": {`{"status":"Success","volumeNewSize":1.5}`, answer{}, "where a int64 belongs"},
		"more than the limit":            {`{"status":"` + strings.Repeat("x", answerLimit) + `"}`, answer{}, "more than 1048576 bytes"},
	} {
		got, err := parseAnswer([]byte(c.out))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("%s: error %v, want %q", name, err, c.err)
			}
			continue
		}
		got.Capabilities = nil
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for out, want := range map[string]Capabilities{
		`{}`:                                {true, true, false, true, true},
		`{"capabilities":null}`:             {true, true, false, true, true},
		`{"capabilities":{}}`:               {true, true, false, true, true},
		`{"capabilities":{"attach":false}}`: {false, true, false, true, true},
		`{"Capabilities":{"attach":false,"selinuxRelabel":false,"supportsMetrics":true,"fsGroup":false,"requiresFSResize":false}}`: {false, false, true, false, false},
	} {
		if got, err := parseAnswer([]byte(out)); err != nil || *got.Capabilities != want {
			t.Errorf("%s: %+v, %v", out, got.Capabilities, err)
		}
	}
}

// Whatever a driver writes, what is taken over can be shown and passed on.
func FuzzParseAnswer(f *testing.F) {
	for _, s := range []string{`{"status":"Success","capabilities":{"attach":false}}`, `{"status":"Not supported"}`, `{"status":"Failure","message":"no\nway"}`,
		`{"status":"Success","device":"/dev/sdb","volumeNewSize":10737418240}`, `{"capabilities":null}`, "x{}", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		a, err := parseAnswer(out)
		if err != nil {
			if text := err.Error(); len(text) > 300 || strings.ContainsFunc(text, unicode.IsControl) {
				t.Errorf("error %q", text)
			}
			return
		}
		if a.Capabilities == nil || a.NewSize < 0 || len(a.Device) > deviceLimit || strings.ContainsFunc(a.Device, unicode.IsControl) {
			t.Errorf("taken over: %+v", a)
		}
		if m := oneLine(a.Message, messageLimit); len(m) > messageLimit+len("…") || strings.ContainsFunc(m, unicode.IsControl) {
			t.Errorf("message %q", m)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"name":"k8s/nfs/pv1","specName":"pv1","persistent":true,"device":"/dev/x","done":true}`))
	f.Add([]byte(`{"name":"../../../etc","specName":".."}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRecord(text)
		if err != nil {
			return
		}
		driver, key, ok := splitUniqueName(r.Name)
		p := paths{root: "/data"}
		if !ok || !below(p.global(driver, key), p.plugin()) || !below(p.stagedRecord(driver, key), p.plugin()) || checkElement(r.SpecName) != nil {
			t.Errorf("record %+v leads to %q", r, p.global(driver, key))
		}
	})
}
