package fsmount

import (
	"errors"
	"strings"
	"testing"
)

func TestParseOptions(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		allowed map[string]bool
		want    string // "!" for refused
	}{
		"none":                           {"", nfsOptions, ""},
		"those of examples":              {"nfsvers=4.1,noatime,hard,timeo=600,retrans=2,nolock", nfsOptions, "nfsvers=4.1,noatime,hard,timeo=600,retrans=2,nolock"},
		"spaces, empty pieces, fstab's":  {" rw , ,_netdev,defaults,noexec,", nfsOptions, "rw,noexec"},
		"exec, which is the default":     {"exec", nfsOptions, "exec"},
		"a list of flavours":             {"sec=krb5p:sys", nfsOptions, "sec=krb5p:sys"},
		"cifs' of examples":              {"vers=3.0,dir_mode=0777,file_mode=0777,uid=1000,gid=1000,nobrl,cache=none,mfsymlinks", cifsOptions, "vers=3.0,dir_mode=0777,file_mode=0777,uid=1000,gid=1000,nobrl,cache=none,mfsymlinks"},
		"a local one":                    {"nouuid,noatime,discard", localOptions, "nouuid,noatime,discard"},
		"setuid programs":                {"suid", nfsOptions, "!"},
		"devices":                        {"dev", cifsOptions, "!"},
		"a smuggled credentials file":    {"vers=3.0,credentials=/etc/shadow", cifsOptions, "!"},
		"its short form":                 {"cred=/etc/shadow", cifsOptions, "!"},
		"a password":                     {"password=x", cifsOptions, "!"},
		"pass":                           {"pass=x", cifsOptions, "!"},
		"password2":                      {"password2=x", cifsOptions, "!"},
		"a user":                         {"user=root", cifsOptions, "!"},
		"user, of mount(8)":              {"user", nfsOptions, "!"},
		"another server by its address":  {"addr=10.0.0.1", nfsOptions, "!"},
		"ip":                             {"ip=10.0.0.1", cifsOptions, "!"},
		"another mount daemon":           {"mounthost=evil", nfsOptions, "!"},
		"another share":                  {"prefixpath=../secret", cifsOptions, "!"},
		"unc":                            {`unc=\\other\share`, cifsOptions, "!"},
		"success before it is mounted":   {"bg", nfsOptions, "!"},
		"a time of its own":              {"retry=10000", nfsOptions, "!"},
		"another kind of mount":          {"bind", nfsOptions, "!"},
		"remount":                        {"remount", localOptions, "!"},
		"loop":                           {"loop=/dev/loop0", localOptions, "!"},
		"a helper":                       {"helper=x", nfsOptions, "!"},
		"x-systemd":                      {"x-systemd.automount", nfsOptions, "!"},
		"an SELinux label":               {"context=system_u:object_r:tmp_t:s0", nfsOptions, "!"},
		"a quote":                        {`vers="4,suid"`, nfsOptions, "!"},
		"a newline":                      {"vers=4\nsuid", nfsOptions, "!"},
		"a NUL":                          {"vers=4\x00", nfsOptions, "!"},
		"an escape":                      {`vers=4\054suid`, nfsOptions, "!"},
		"a tab around a comma":           {"ro,\tsuid", nfsOptions, "!"},
		"upper case":                     {"SUID", nfsOptions, "!"},
		"a value where there is none":    {"ro=1", nfsOptions, "!"},
		"no value":                       {"vers=", nfsOptions, "!"},
		"a value of 129 bytes":           {"vers=" + strings.Repeat("4", 129), nfsOptions, "!"},
		"1025 bytes":                     {strings.Repeat("ro,", 400), nfsOptions, "!"},
		"cifs' for nfs":                  {"nobrl", nfsOptions, "!"},
		"backup intent, past the access": {"backupuid=0", cifsOptions, "!"},
		"others' keys":                   {"multiuser", cifsOptions, "!"},
		"a journal elsewhere":            {"journal_path=/dev/sda", localOptions, "!"},
		"a log device":                   {"logdev=/dev/sda", localOptions, "!"},
		"subvolumes":                     {"subvolid=5", localOptions, "!"},
		"a leading dash":                 {"-oremount", nfsOptions, "!"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseOptions(c.options, c.allowed)
			if c.want == "!" {
				if !errors.Is(err, ErrOption) {
					t.Errorf("%q, %v; want it refused", got, err)
				}
				return
			}
			if err != nil || strings.Join(got, ",") != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// A refused option's value may be a password: the message has its name alone.
func TestRefusedOptionIsNotQuoted(t *testing.T) {
	for _, o := range []string{"password=hunter2", "vers=hun ter2"} {
		if _, err := parseOptions(o, cifsOptions); err == nil || strings.Contains(err.Error(), "ter2") {
			t.Errorf("%q: %v", o, err)
		}
	}
}

// What comes out of any text: known names, values without a separator, and the same again when it is parsed once more.
func FuzzParseOptions(f *testing.F) {
	for _, s := range []string{"", "ro,vers=4.1", "vers=4,suid", "a=b=c", ",,, ,", "sec=krb5p:sys", "vers=\"4,ro\"", "\x00", "ro,credentials=/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, allowed := range []map[string]bool{nfsOptions, cifsOptions, localOptions} {
			got, err := parseOptions(s, allowed)
			if err != nil {
				continue
			}
			joined := strings.Join(got, ",")
			if strings.ContainsAny(joined, "\n\x00\"'\\ \t") {
				t.Errorf("%q became %q", s, joined)
			}
			for o := range strings.SplitSeq(joined, ",") {
				key, _, _ := strings.Cut(o, "=")
				if _, known := allowed[key]; o != "" && !known && !everywhere[key] {
					if _, general := everywhere[key]; !general {
						t.Errorf("%q let %q through", s, key)
					}
				}
				switch key {
				case "suid", "dev", "credentials", "password", "remount", "bind", "addr", "ip":
					t.Errorf("%q let %q through", s, key)
				}
			}
			again, err := parseOptions(joined, allowed)
			if err != nil || strings.Join(again, ",") != joined {
				t.Errorf("%q became %q, and that %q, %v", s, joined, again, err)
			}
		}
	})
}

// TestForAll: whether one pod writes does not decide how a device is mounted for all of them; its options and the device do.
func TestForAll(t *testing.T) {
	for name, tc := range map[string]struct {
		options  string
		readOnly bool
		device   Device
		want     bool
	}{
		"a pod that writes":             {"noatime", false, Device{}, false},
		"a pod that reads":              {"noatime", true, Device{}, false},
		"read-only options":             {"ro,noatime", false, Device{}, true},
		"the last one wins":             {"ro,rw", true, Device{}, false},
		"a device that takes no writes": {"", false, Device{ReadOnly: true}, true},
	} {
		fs, err := ParseFilesystem("", tc.options, tc.readOnly)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		asked := fs.ReadOnly
		if all := fs.ForAll(&tc.device); all.ReadOnly != tc.want || fs.ReadOnly != asked {
			t.Errorf("%s: for all read-only %v, for the pod %v, asked %v", name, all.ReadOnly, fs.ReadOnly, asked)
		}
	}
}
