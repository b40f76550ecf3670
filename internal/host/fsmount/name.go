package fsmount

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// ErrName is a server, share or path that is refused.
var ErrName = errors.New("not allowed")

// Limits in bytes: of a host name (RFC 1035 §2.3.4), and of a path on a share, so that with the server's name it stays below
// what the kernel takes as a mount's source.
const (
	serverLimit = 253
	shareLimit  = 1024
)

// parseServer takes a host name, an IPv4 address, or an IPv6 address with or without brackets, which are not in the answer.
func parseServer(s string) (string, error) {
	bare := s
	if inner, opened := strings.CutPrefix(s, "["); opened {
		closed := false
		if bare, closed = strings.CutSuffix(inner, "]"); !closed || !strings.Contains(bare, ":") {
			return "", fmt.Errorf("server %.80q: %w: brackets are for an IPv6 address", s, ErrName)
		}
	}
	switch {
	case bare == "":
		return "", fmt.Errorf("server: %w: it is empty", ErrName)
	case len(bare) > serverLimit:
		return "", fmt.Errorf("server: %w: it has %d bytes, a name has at most %d", ErrName, len(bare), serverLimit)
	case bare[0] == '-' || bare[0] == '.' || bare[0] == ':' && !strings.HasPrefix(bare, "::"):
		return "", fmt.Errorf("server %.80q: %w: it begins with %q", s, ErrName, bare[0])
	}
	six := strings.Contains(bare, ":")
	for _, c := range []byte(bare) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || c == '.' || !six && (c == '-' || c == '_') || six && (c == ':' || c == '%') {
			continue
		}
		return "", fmt.Errorf("server %.80q: %w: a host name or address has no %q", s, ErrName, c)
	}
	return bare, nil
}

// parseShare takes an absolute path on a server, with or without its leading slash, and answers it with.
func parseShare(what, s string) (string, error) {
	if err := checkPath(what, s); err != nil {
		return "", err
	}
	return path.Clean("/" + s), nil
}

// parseSubPath takes a path below a share; "" stays so.
func parseSubPath(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if err := checkPath("subPath", s); err != nil {
		return "", err
	}
	if s[0] == '/' {
		return "", fmt.Errorf("subPath %.80q: %w: it is relative to the share, without a leading slash", s, ErrName)
	}
	clean := path.Clean(s)
	if clean == "." {
		return "", nil
	}
	return clean, nil
}

// checkPath refuses what could be an option, a line of its own, or a way out.
func checkPath(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s: %w: it is empty", what, ErrName)
	case len(s) > shareLimit:
		return fmt.Errorf("%s: %w: it has %d bytes, at most %d are", what, ErrName, len(s), shareLimit)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s %.80q: %w: it is not UTF-8", what, s, ErrName)
	case s[0] == '-':
		return fmt.Errorf("%s %.80q: %w: it begins with a dash", what, s, ErrName)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == 0x2028 || r == 0x2029 {
			return fmt.Errorf("%s %.80q: %w: it has a control character", what, s, ErrName)
		}
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return fmt.Errorf("%s %.80q: %w: it has .. as an element", what, s, ErrName)
		}
		if len(part) > 255 {
			return fmt.Errorf("%s: %w: an element has %d bytes, a name has at most 255", what, ErrName, len(part))
		}
	}
	return nil
}
