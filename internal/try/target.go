package try

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// target is a driver as the user named it: a socket that is served, or a command.
type target struct {
	socket string
	argv   []string
}

// Placeholders in a command.
const (
	placeSocket   = "{{socket}}"   // path of the socket to serve
	placeEndpoint = "{{endpoint}}" // the same as unix:///…
	placeNode     = "{{node}}"     // name of the instance's node
	placeDir      = "{{dir}}"      // an empty directory that goes at the end
)

// parseTarget tells a socket from a command: unix://…, an absolute path that ends in .sock, or a file that is a socket.
func parseTarget(text string) (target, error) {
	text = strings.TrimSpace(text)
	path, isURL := strings.CutPrefix(text, "unix://")
	if !isURL {
		path, isURL = strings.CutPrefix(text, "unix:")
	}
	if info, err := os.Stat(path); isURL || err == nil && info.Mode()&os.ModeSocket != 0 || strings.HasSuffix(path, ".sock") && !strings.ContainsAny(path, " \t") {
		abs, err := filepath.Abs(path)
		return target{socket: abs}, err
	}
	argv, err := splitCommand(text)
	if err != nil {
		return target{}, err
	}
	return target{argv: argv}, nil
}

// splitCommand splits into words as a shell does, with ' and " and \, and nothing else of a shell.
func splitCommand(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	open, escaped := false, false
	for _, r := range text {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			open, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if open {
				words = append(words, word.String())
				word.Reset()
				open = false
			}
		default:
			word.WriteRune(r)
			open = true
		}
	}
	switch {
	case quote != 0:
		return nil, fmt.Errorf("the quote %c in the command is not closed", quote)
	case escaped:
		return nil, errors.New("the command ends in a backslash")
	}
	if open {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("the command is empty")
	}
	return words, nil
}

// fill puts the values in the place of the placeholders.
func (t target) fill(socket, node, dir string) []string {
	r := strings.NewReplacer(placeSocket, socket, placeEndpoint, "unix://"+socket, placeNode, node, placeDir, dir)
	argv := slices.Clone(t.argv)
	for i := range argv {
		argv[i] = r.Replace(argv[i])
	}
	return argv
}
