package fsmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/command"
)

// Credentials are a user's at a CIFS server. They are never part of a message.
type Credentials struct{ Username, Password, Domain string }

// String keeps them out of messages.
func (Credentials) String() string { return "(credentials)" }

// GoString does so for %#v.
func (Credentials) GoString() string { return "(credentials)" }

// Limits of cifs-utils (mount.cifs.c), in bytes.
const (
	usernameLimit = 256
	passwordLimit = 512
	domainLimit   = 256
)

// CIFS is a share of an SMB server, or a directory of it.
type CIFS struct {
	source, subPath string // source is //server/share or //server/share/directory
	options         []string
	credentials     Credentials
	readOnly        bool
}

// ParseCIFS checks what a user wrote: source as //server/share, \\server\share, either followed by a directory; subPath
// relative to it; options as in /etc/fstab. The errors are ErrName and ErrOption. group, if not nil, is given all files, since
// on a share of SMB they have no owners of their own.
func ParseCIFS(source, subPath, options string, c Credentials, readOnly bool, group *int64) (*CIFS, error) {
	f := &CIFS{readOnly: readOnly, credentials: c}
	var err error
	if f.source, err = parseUNC(source); err != nil {
		return nil, err
	}
	if f.subPath, err = parseSubPath(subPath); err != nil {
		return nil, err
	}
	if f.options, err = parseOptions(options, cifsOptions); err != nil {
		return nil, err
	}
	if err := checkCredentials(c, f.options); err != nil {
		return nil, err
	}
	f.readOnly = f.readOnly || lastOf(f.options, "ro", "rw") == "ro"
	if group != nil && !named(f.options, "gid") {
		f.options = append(f.options, "gid="+strconv.FormatInt(*group, 10), "forcegid")
		if !named(f.options, "file_mode") {
			f.options = append(f.options, "file_mode=0660")
		}
		if !named(f.options, "dir_mode") {
			f.options = append(f.options, "dir_mode=02770")
		}
	}
	return f, nil
}

// UNC is the source of a share from its parts, each as a user may have written it.
func UNC(server, share string) string {
	return "//" + strings.Trim(server, `/\`) + "/" + strings.TrimLeft(share, `/\`)
}

// parseUNC answers //server/share[/directory]. mount.cifs hands the share to the kernel inside of a list of options, so there is no
// comma in it.
func parseUNC(s string) (string, error) {
	if len(s) > shareLimit+serverLimit {
		return "", fmt.Errorf("source: %w: it has %d bytes, at most %d are", ErrName, len(s), shareLimit+serverLimit)
	}
	rest, slashes := strings.CutPrefix(strings.ReplaceAll(s, `\`, "/"), "//")
	server, share, both := strings.Cut(rest, "/")
	if !slashes || !both {
		return "", fmt.Errorf("source %.80q: %w: it is not of the form //server/share", s, ErrName)
	}
	server, err := parseServer(server)
	if err != nil {
		return "", err
	}
	clean, err := parseShare("share", share)
	if err != nil {
		return "", err
	}
	if clean == "/" || share[0] == '/' {
		return "", fmt.Errorf("source %.80q: %w: it names no share after the server", s, ErrName)
	}
	if strings.ContainsAny(clean, `,"`) {
		return "", fmt.Errorf("source %.80q: %w: it has a comma or a quote", s, ErrName)
	}
	return "//" + server + clean, nil
}

// checkCredentials refuses what would be another line of the file that mount.cifs reads.
func checkCredentials(c Credentials, options []string) error {
	for _, v := range []struct {
		name, value string
		limit       int
	}{{"username", c.Username, usernameLimit}, {"password", c.Password, passwordLimit}, {"domain", c.Domain, domainLimit}} {
		switch {
		case len(v.value) >= v.limit:
			return fmt.Errorf("%s: %w: it has %d bytes, fewer than %d are", v.name, ErrName, len(v.value), v.limit)
		case strings.ContainsFunc(v.value, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(v.value):
			return fmt.Errorf("%s: %w: it has a control character or is not UTF-8 (a line's end of the file that it was made from?)", v.name, ErrName)
		}
	}
	security := valueOf(options, "sec")
	if c.Username == "" && !named(options, "guest") && security != "none" && !strings.HasPrefix(security, "krb5") {
		return fmt.Errorf("username: %w: the Secret has none, and neither guest nor sec=none nor sec=krb5 is among the mount options", ErrName)
	}
	return nil
}

// Source is the share as the kernel has it.
func (f *CIFS) Source() string { return f.source }

// SubPath is the directory of it, "" for itself.
func (f *CIFS) SubPath() string { return f.subPath }

// Mount mounts it at the directory below root, which is made where it is missing. Mounted already is success; something
// else there is an error.
func (f *CIFS) Mount(ctx context.Context, root, below string) error {
	return mountShare(ctx, root, below, f.same, func(ctx context.Context, t *Target) (*os.File, error) {
		magic := []int64{unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC}
		return detachedShare(ctx, t.path, f.subPath, attributes(f.readOnly), magic, func(dir string) error { return f.run(ctx, dir) })
	})
}

// run asks mount.cifs. The credentials are a file in memory that the program inherits, and that nobody else has a name for: they
// stand neither on its command line nor in its environment nor on a disk.
func (f *CIFS) run(ctx context.Context, dir string) error {
	options := slices.DeleteFunc(slices.Clone(f.options), accessOption)
	var files []*os.File
	if f.credentials != (Credentials{}) {
		secret, err := f.credentials.file()
		if err != nil {
			return err
		}
		defer secret.Close()
		files, options = []*os.File{secret}, append(options, "credentials=/proc/self/fd/3")
	}
	args := []string{f.source, dir, "-n"}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	_, err := command.Output(ctx, shareDeadline, files, "mount.cifs", args...)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, command.ErrMissing):
		return fmt.Errorf("%w: install the package cifs-utils", err)
	}
	return fmt.Errorf("mount %s: %w", f.source, err)
}

func (c Credentials) file() (*os.File, error) {
	fd, err := unix.MemfdCreate("credentials", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("keep the credentials in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "credentials")
	var text strings.Builder
	for _, line := range [][2]string{{"username", c.Username}, {"password", c.Password}, {"domain", c.Domain}} {
		if line[1] != "" {
			text.WriteString(line[0] + "=" + line[1] + "\n")
		}
	}
	if _, err := f.WriteString(text.String()); err != nil {
		f.Close()
		return nil, fmt.Errorf("keep the credentials in memory: %w", err)
	}
	return f, nil
}

// same says whether a mount that is there already is this one.
func (f *CIFS) same(m *Mount) error {
	if m.FSType != "cifs" && m.FSType != "smb3" || !strings.EqualFold(m.Source, f.source) && !f.prefixed(m) || m.Root != path.Clean("/"+f.subPath) {
		return occupied(m, strings.TrimSuffix(f.source+"/"+f.subPath, "/"))
	}
	return sameAccess(m, f.readOnly)
}

// prefixed: some kernels name the share alone, and the directory of the source as the root of the mount.
func (f *CIFS) prefixed(m *Mount) bool {
	return strings.HasPrefix(strings.ToLower(f.source), strings.ToLower(m.Source)+"/")
}
