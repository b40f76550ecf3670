// Package flexdriver has FlexVolume drivers for the tests: shell scripts that behave as upstream's fixtures and as the drivers of
// the tutorials do. Each is installed under any name, and keeps what it does in a directory of the test's.
package flexdriver

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

//go:embed *.sh
var scripts embed.FS

// Script is the text of the fixture called kind (dummy, attachable, share, cifs, disk), which keeps its state in that directory.
func Script(kind, state string) (string, error) {
	common, err := scripts.ReadFile("common.sh")
	if err != nil {
		return "", err
	}
	own, err := scripts.ReadFile(kind + ".sh")
	if err != nil {
		return "", fmt.Errorf("there is no driver of the kind %q: %w", kind, err)
	}
	return strings.ReplaceAll(string(common), "@STATE@", "'"+state+"'") + string(own), nil
}

// Install puts the fixture called kind into dir under the name VENDOR/DRIVER.
func Install(dir, name, kind, state string) error {
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	text, err := Script(kind, state)
	if err != nil {
		return err
	}
	return InstallText(dir, name, text)
}

// InstallText puts a script into dir under the name VENDOR/DRIVER, the way an installer should: written aside, then renamed.
func InstallText(dir, name, text string) error {
	at := Path(dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	aside := filepath.Join(filepath.Dir(at), "."+filepath.Base(at))
	if err := os.WriteFile(aside, []byte(text), 0o755); err != nil {
		return err
	}
	return os.Rename(aside, at)
}

// Path is where the driver's executable is.
func Path(dir, name string) string {
	return filepath.Join(dir, strings.ReplaceAll(name, "/", "~"), filepath.Base(name))
}

// Calls are the call-outs so far, each with its arguments, without secrets.
func Calls(state string) []string {
	text, _ := os.ReadFile(filepath.Join(state, "calls"))
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
}

// Verbs are the call-outs so far without their arguments.
func Verbs(state string) []string {
	var verbs []string
	for _, c := range Calls(state) {
		verb, _, _ := strings.Cut(c, " ")
		verbs = append(verbs, verb)
	}
	return verbs
}
