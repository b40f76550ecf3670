package fsmount

import (
	"errors"
	"path"
	"strings"
	"testing"
)

func TestParseNFS(t *testing.T) {
	for name, c := range map[string]struct {
		server, share, subPath string
		want                   string // source; "!" for refused
	}{
		"a name":                        {"nfs.example.com", "/srv/data", "", "nfs.example.com:/srv/data"},
		"without the leading slash":     {"nfs", "srv/data", "", "nfs:/srv/data"},
		"a root":                        {"nfs", "/", "", "nfs:/"},
		"doubled and trailing slashes":  {"nfs", "//srv//data/", "", "nfs:/srv/data"},
		"an address":                    {"10.0.0.1", "/x", "", "10.0.0.1:/x"},
		"IPv6":                          {"2001:db8::1", "/x", "", "[2001:db8::1]:/x"},
		"IPv6 in brackets, with a zone": {"[fe80::1%eth0]", "/x", "", "[fe80::1%eth0]:/x"},
		"a subPath":                     {"nfs", "/x", "a/b", "nfs:/x/a/b"},
		"a subPath with dots in it":     {"nfs", "/x", "a..b/...", "nfs:/x/a..b/..."},
		"spaces and letters of Greece":  {"nfs", "/My Docs/αβγ", "", "nfs:/My Docs/αβγ"},
		"no server":                     {"", "/x", "", "!"},
		"no share":                      {"nfs", "", "", "!"},
		"a server with a dash first":    {"-oremount", "/x", "", "!"},
		"a server and a share in one":   {"nfs:/etc", "/x", "", "!"},
		"a server with a space":         {"nfs x", "/x", "", "!"},
		"a server with a slash":         {"nfs/x", "/x", "", "!"},
		"a server with a comma":         {"a,b", "/x", "", "!"},
		"brackets around a name":        {"[nfs]", "/x", "", "!"},
		"a bracket":                     {"[::1", "/x", "", "!"},
		"a server of 254 bytes":         {strings.Repeat("a", 254), "/x", "", "!"},
		"a share with ..":               {"nfs", "/x/../etc", "", "!"},
		"a share that is ..":            {"nfs", "..", "", "!"},
		"a share with a newline":        {"nfs", "/x\n/y", "", "!"},
		"a share with a NUL":            {"nfs", "/x\x00", "", "!"},
		"a share with a dash first":     {"nfs", "-x", "", "!"},
		"a share of 4096 bytes":         {"nfs", strings.Repeat("/x", 2048), "", "!"},
		"a name of 256 bytes":           {"nfs", "/" + strings.Repeat("x", 256), "", "!"},
		"a share that is not UTF-8":     {"nfs", "/\xff", "", "!"},
		"a line separator":              {"nfs", "/x\u2028y", "", "!"},
		"a subPath with ..":             {"nfs", "/x", "a/../../b", "!"},
		"a subPath from the root":       {"nfs", "/x", "/etc", "!"},
		"a subPath with a dash first":   {"nfs", "/x", "-a", "!"},
		"a subPath with a newline":      {"nfs", "/x", "a\nb", "!"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := ParseNFS(c.server, c.share, c.subPath, "", false)
			if c.want == "!" {
				if !errors.Is(err, ErrName) {
					t.Errorf("%+v, %v; want it refused", n, err)
				}
				return
			}
			if err != nil || n.Source() != c.want {
				t.Errorf("%+v, %v; want %s", n, err, c.want)
			}
		})
	}
}

func TestParseUNC(t *testing.T) {
	for name, c := range map[string][2]string{
		"plain":                       {"//server/share", "//server/share"},
		"backslashes":                 {`\\server\share`, "//server/share"},
		"a directory":                 {"//server/share/a/b/", "//server/share/a/b"},
		"a hidden share":              {"//server/c$", "//server/c$"},
		"a space":                     {"//server/My Docs", "//server/My Docs"},
		"IPv6":                        {"//[2001:db8::1]/share", "//2001:db8::1/share"},
		"from its parts":              {UNC("server", "/share"), "//server/share"},
		"from parts with slashes":     {UNC("//server/", "share"), "//server/share"},
		"no slashes":                  {"server/share", "!"},
		"no share":                    {"//server", "!"},
		"an empty share":              {"//server/", "!"},
		"an empty share, two":         {"//server//etc", "!"},
		"no server":                   {"///share", "!"},
		"smuggled options":            {"//server/x,credentials=/etc/shadow", "!"},
		"a quote":                     {`//server/x"y`, "!"},
		"up":                          {"//server/share/../other", "!"},
		"up, in Windows' way":         {`\\server\share\..\other`, "!"},
		"a newline":                   {"//server/a\nb", "!"},
		"a dash first":                {"//-server/x", "!"},
		"4096 bytes":                  {"//server/" + strings.Repeat("a/", 2048), "!"},
		"a user in front of the name": {"//user:pass@server/x", "!"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseUNC(c[0])
			if c[1] == "!" {
				if !errors.Is(err, ErrName) {
					t.Errorf("%q, %v; want it refused", got, err)
				}
				return
			}
			if err != nil || got != c[1] {
				t.Errorf("%q, %v; want %q", got, err, c[1])
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	group := int64(4242)
	for name, c := range map[string]struct {
		credentials Credentials
		options     string
		ok          bool
	}{
		"a user and a password":         {Credentials{"u", "p", ""}, "", true},
		"a comma and an equals sign":    {Credentials{"u", `a,b=c "d"`, "DOM"}, "", true},
		"none":                          {Credentials{}, "", false},
		"a guest":                       {Credentials{}, "guest", true},
		"Kerberos":                      {Credentials{}, "sec=krb5i", true},
		"a password without a user":     {Credentials{"", "p", ""}, "", false},
		"a line's end in the password":  {Credentials{"u", "p\n", ""}, "", false},
		"a line of its own in the user": {Credentials{"u\npassword=x", "p", ""}, "", false},
		"a NUL in the domain":           {Credentials{"u", "p", "d\x00"}, "", false},
		"a password of 512 bytes":       {Credentials{"u", strings.Repeat("p", 512), ""}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := ParseCIFS("//s/x", "", c.options, c.credentials, false, &group)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrName) {
				t.Fatalf("%v", err)
			}
			if err != nil {
				for _, v := range []string{c.credentials.Password, c.credentials.Username} {
					if len(v) > 1 && strings.Contains(err.Error(), v) {
						t.Errorf("the error has the secret: %v", err)
					}
				}
				return
			}
			if !strings.Contains(strings.Join(f.options, ","), "gid=4242,forcegid,file_mode=0660,dir_mode=02770") {
				t.Errorf("options %q", f.options)
			}
		})
	}
}

// The file that mount.cifs inherits has a line for each part, and no name anywhere.
func TestCredentialsFile(t *testing.T) {
	f, err := Credentials{"u", "p,=", "d"}.file()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 100)
	n, _ := f.ReadAt(b, 0)
	if string(b[:n]) != "username=u\npassword=p,=\ndomain=d\n" {
		t.Errorf("%q", b[:n])
	}
}

func TestParseLogicalVolume(t *testing.T) {
	for name, c := range map[string][3]string{
		"plain":              {"vg", "lv", "vg-lv"},
		"dashes are doubled": {"kube-vg", "a-b", "kube--vg-a--b"},
		"all characters":     {"a+B_0.", "x+Y_9.", "a+B_0.-x+Y_9."},
		"no group":           {"", "lv", "!"},
		"no volume":          {"vg", "", "!"},
		"a dash first":       {"-vg", "lv", "!"},
		"an option":          {"vg", "--config", "!"},
		"a way out":          {"vg", "..", "!"},
		"a slash":            {"vg", "a/b", "!"},
		"LVM's language":     {`vg" || "1"="1`, "lv", "!"},
		"a space":            {"vg", "a b", "!"},
		"LVM's own":          {"vg", "pool_tmeta", "!"},
		"a snapshot's":       {"vg", "snapshot1", "!"},
		"128 bytes":          {"vg", strings.Repeat("a", 128), "!"},
		"together too long":  {strings.Repeat("a", 70), strings.Repeat("b", 70), "!"},
		"an umlaut":          {"vg", "ä", "!"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := ParseLogicalVolume(c[0], c[1])
			if c[2] == "!" {
				if !errors.Is(err, ErrName) {
					t.Errorf("%v, %v; want it refused", v, err)
				}
				return
			}
			if err != nil || v.Mapping() != c[2] {
				t.Errorf("%s, %v; want %s", v.Mapping(), err, c[2])
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	const mib = 1 << 20
	for text, want := range map[string]int64{
		"1000m": 1000 * mib, "1000M": 1000 * mib, "10Gi": 10240 * mib, "1g": 1024 * mib, "1GiB": 1024 * mib, "2t": 2 << 40, "1k": mib, "1025Ki": 2 * mib,
		"1000": 0, "": 0, "m": 0, "-1m": 0, "0m": 0, "1.5g": 0, "1e3m": 0, "1mm": 0, "1p": 0, "9999999999t": 0, "1 m": 0, "0x10m": 0, "+1m": mib,
	} {
		got, err := ParseSize(text)
		if got != want || (want == 0) != errors.Is(err, ErrName) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

func FuzzParseNFS(f *testing.F) {
	for _, s := range [][3]string{{"nfs", "/x", "a"}, {"[::1]", "x", ""}, {"-o", "..", "../x"}, {"a,b", "\n", "-"}, {"nfs", "//", "./."}} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, server, share, subPath string) {
		n, err := ParseNFS(server, share, subPath, "", false)
		if err != nil {
			return
		}
		if n.share[0] != '/' || n.server == "" || n.server[0] == '-' || strings.ContainsAny(n.server, ", /\n\x00") ||
			strings.ContainsAny(n.share+n.subPath, "\n\x00") || n.subPath != "" && (n.subPath[0] == '/' || n.subPath[0] == '-') {
			t.Errorf("%+v", n)
		}
		if joined := path.Join(n.share, n.subPath); n.share != "/" && joined != n.share && !strings.HasPrefix(joined, n.share+"/") {
			t.Errorf("%s is not below %s", joined, n.share)
		}
	})
}

func FuzzParseUNC(f *testing.F) {
	for _, s := range []string{"//s/x", `\\s\x\y`, "//s/x,y", "//[::1]/x", "//s//", "//s/../x", "//s/."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseUNC(s)
		if err != nil {
			return
		}
		if !strings.HasPrefix(got, "//") || strings.ContainsAny(got, ",\"\\\n\x00") || strings.Contains(got, "/../") || strings.Count(got, "/") < 3 {
			t.Errorf("%q became %q", s, got)
		}
		if again, err := parseUNC(got); err != nil || again != got {
			// An IPv6 address loses its brackets and is known without them.
			t.Errorf("%q became %q, and that %q, %v", s, got, again, err)
		}
	})
}

func FuzzParseLogicalVolume(f *testing.F) {
	f.Add("vg", "lv")
	f.Add("-vg", "a/b")
	f.Add("kube-vg", "a--b")
	f.Fuzz(func(t *testing.T, group, name string) {
		v, err := ParseLogicalVolume(group, name)
		if err != nil {
			return
		}
		if strings.ContainsAny(v.String(), " \"'\\\n\x00") || strings.Count(v.String(), "/") != 1 || v.DevicePath() != "/dev/"+group+"/"+name || v.Mapping()[0] == '-' {
			t.Errorf("%q %q", group, name)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1000m", "10Gi", "1", "9223372036854775807t", "0k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && (n <= 0 || n%(1<<20) != 0 || n > 1<<60) {
			t.Errorf("%q is %d", s, n)
		}
	})
}

// What comes out of any text that LVM may have written: rows, and of a row a size that is none below zero.
func FuzzParseReport(f *testing.F) {
	for _, s := range []string{
		`{"report":[{"lv":[{"lv_size":"335544320","lv_attr":"-wi-ao----","lv_tags":"berth.unformatted"}]}]}`,
		`{"report":[{"vg":[{"vg_name":"vg"}]},{"lv":[]}]}`, `{"report":[{"lv":[null]}]}`, `{"report":[{"lv":[{"lv_size":-1}]}]}`,
		`{"report":[{"lv":[{"lv_size":"-1","lv_attr":"o"}]}]}`, `{"report":null}`, "", "  WARNING: a PV is missing\n{}", `{"report":[{"lv":[{"lv_attr":"twi-aotz--"}]}]}`,
	} {
		f.Add(s)
	}
	v, err := ParseLogicalVolume("vg", "lv")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, section := range []string{"lv", "vg"} {
			rows, err := parseReport(s, section)
			if err != nil && rows != nil {
				t.Errorf("%q: rows with an error", s)
			}
			for _, row := range rows {
				d, err := v.details(row)
				if err != nil && (d != Details{} || len(err.Error()) > 400) || d.Bytes < 0 {
					t.Errorf("%q: %+v, %v", s, d, err)
				}
			}
		}
	})
}

// What a pod's author writes for a share of SMB, all at once: what is let through names one share, has no option but those that are allowed,
// and one line for each credential; what is refused never tells the password.
func FuzzParseCIFS(f *testing.F) {
	for _, s := range [][6]string{
		{"//s/x", "a", "vers=3.0", "u", "p", "d"}, {`\\s\x\y`, "", "guest", "", "", ""}, {"//s/x", "../y", "", "u", "p", ""},
		{"//s/x", "", "credentials=/etc/shadow", "u", "p", ""}, {"//s/x", "", "uid=1,gid=2,forcegid", "u", "pa,ss\nusername=root", ""},
		{"//s/x,y", "", "", "u", "p", ""}, {"//s/x", "", "sec=krb5", "", "", ""}, {"//s/x", "", "sec=ntlmssp", "", "secret", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3], s[4], s[5], int64(-1), false)
		f.Add(s[0], s[1], s[2], s[3], s[4], s[5], int64(1000), true)
	}
	f.Fuzz(func(t *testing.T, source, subPath, options, username, password, domain string, group int64, readOnly bool) {
		owner := &group
		if group < 0 {
			owner = nil
		}
		c, err := ParseCIFS(source, subPath, options, Credentials{username, password, domain}, readOnly, owner)
		if err != nil {
			if !errors.Is(err, ErrName) && !errors.Is(err, ErrOption) {
				t.Errorf("%v is neither ErrName nor ErrOption", err)
			}
			if len(password) > 8 && strings.Contains(err.Error(), password) && !strings.Contains(source+subPath+options, password) {
				t.Errorf("the password is in %q", err)
			}
			return
		}
		if strings.ContainsAny(c.Source(), ",\"\\\n\x00") || !strings.HasPrefix(c.Source(), "//") || strings.Contains(c.Source()+"/", "/../") ||
			c.SubPath() != "" && (c.SubPath()[0] == '/' || c.SubPath()[0] == '-' || strings.Contains("/"+c.SubPath()+"/", "/../")) {
			t.Errorf("%q, %q", c.Source(), c.SubPath())
		}
		again, err := parseOptions(strings.Join(c.options, ","), cifsOptions)
		if err != nil || strings.Join(again, ",") != strings.Join(c.options, ",") {
			t.Errorf("options %q, %v", c.options, err)
		}
		for _, text := range []string{c.credentials.Username, c.credentials.Password, c.credentials.Domain} {
			if strings.ContainsAny(text, "\n\r\x00") {
				t.Errorf("a credential with a line of its own: %q", text)
			}
		}
		if readOnly && !c.readOnly {
			t.Error("read-only was lost")
		}
	})
}
