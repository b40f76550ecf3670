package cli

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWhatMigrateFlexVolumeIsGiven(t *testing.T) {
	for name, one := range map[string]struct {
		flags migrateFlags
		args  []string
		want  string // in the error; empty: none
	}{
		"names":                 {migrateFlags{within: time.Minute}, []string{"a", "b"}, ""},
		"labels":                {migrateFlags{within: time.Minute, selector: "app in (a,b)"}, nil, ""},
		"an undo file":          {migrateFlags{within: time.Minute, undo: "f"}, nil, ""},
		"nothing":               {migrateFlags{within: time.Minute}, nil, "name PersistentVolumes"},
		"names and labels":      {migrateFlags{within: time.Minute, selector: "a=b"}, []string{"a"}, "exclude each other"},
		"names and an undo":     {migrateFlags{within: time.Minute, undo: "f"}, []string{"a"}, "exclude each other"},
		"labels that are none":  {migrateFlags{within: time.Minute, selector: "a=b=c"}, nil, "-l"},
		"an empty name":         {migrateFlags{within: time.Minute}, []string{""}, "empty"},
		"no time":               {migrateFlags{}, []string{"a"}, "--timeout"},
		"a context of nothing":  {migrateFlags{within: time.Minute, kubeContext: "c"}, []string{"a"}, "--kubeconfig"},
		"a driver":              {migrateFlags{within: time.Minute, blockDrivers: []string{"acme/block"}}, []string{"a"}, ""},
		"a driver of no vendor": {migrateFlags{within: time.Minute, blockDrivers: []string{"block"}}, []string{"a"}, "VENDOR/DRIVER"},
		"a driver's directory":  {migrateFlags{within: time.Minute, blockDrivers: []string{"a/b/c"}}, []string{"a"}, "VENDOR/DRIVER"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := one.flags.validate(one.args)
			if one.want == "" && err != nil || one.want != "" && (err == nil || !strings.Contains(err.Error(), one.want)) {
				t.Errorf("error %v, want %q", err, one.want)
			}
		})
	}
}

func TestWhereUndoFilesAre(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_STATE_HOME", "")
	dir := t.TempDir()
	for want, f := range map[string]*migrateFlags{
		filepath.Join(dir, "migrate"):                     {global: &global{dataDir: dir}},
		filepath.Join(home, ".local/state/berth/migrate"): {global: &global{dataDir: dir}, kubeconfig: "k"},
	} {
		if got, err := f.defaultUndoDir(); err != nil || got != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
	t.Setenv("XDG_STATE_HOME", home)
	f := &migrateFlags{global: &global{dataDir: dir}, kubeconfig: "/k", kubeContext: "c"}
	if got, err := f.defaultUndoDir(); err != nil || got != filepath.Join(home, "berth/migrate") {
		t.Errorf("%s, %v", got, err)
	}
}

// The command that takes a volume back is copied into a shell.
func TestTheCommandThatTakesBackIsForAShell(t *testing.T) {
	for _, one := range []struct {
		flags migrateFlags
		file  string
		want  string
	}{
		{migrateFlags{global: &global{dataDir: "/d"}, kubeconfig: "/k", kubeContext: "c"}, "/u/pv.1.json", "berth migrate flexvolume --kubeconfig /k --context c --undo /u/pv.1.json"},
		{migrateFlags{global: &global{dataDir: "/d"}, kubeconfig: "/my k", kubeContext: "a$b"}, "/u/it's.json",
			`berth migrate flexvolume --kubeconfig '/my k' --context 'a$b' --undo '/u/it'\''s.json'`},
		{migrateFlags{global: &global{dataDir: "/my data"}}, "/u v/f.json", "berth migrate flexvolume --data-dir '/my data' --undo '/u v/f.json'"},
	} {
		if got := one.flags.again(one.file); got != one.want {
			t.Errorf("%s\nwant %s", got, one.want)
		}
	}
}
