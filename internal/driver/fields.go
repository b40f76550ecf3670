package driver

import (
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The sizes that a request's fields may have (CSI spec v1.13, "Size Limits"), in bytes.
const (
	maxString = 128
	maxMap    = 4 << 10
	maxNode   = 256 // NodeGetInfoResponse.node_id
	maxFlags  = 4 << 10
	maxPath   = 4096 // PATH_MAX, which the spec lets a plugin choose
)

// checkFields refuses a request with a field that is longer than the spec allows or has characters that no name has,
// whatever the request is. The error names the field as the spec spells it.
//
// Secrets and volume_context are not measured: Kubernetes passes a Secret's whole content, and tokens, and nothing here
// keeps them. A starting_token is checked where it is read, since a wrong one has a code of its own.
func checkFields(m proto.Message) error { return checkMessage("", m.ProtoReflect()) }

func checkMessage(prefix string, m protoreflect.Message) (err error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = checkField(prefix+string(f.Name()), f, v)
		return err == nil
	})
	return err
}

func checkField(name string, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch {
	case f.Name() == "secrets" || f.Name() == "volume_context" || f.Name() == "starting_token":
		return nil
	case f.IsMap():
		return checkMap(name, f, v.Map())
	case f.IsList():
		return checkList(name, f, v.List())
	case f.Kind() == protoreflect.MessageKind:
		return checkMessage(name+".", v.Message())
	case f.Kind() == protoreflect.StringKind:
		return checkString(name, f, v.String())
	}
	return nil
}

func checkMap(name string, f protoreflect.FieldDescriptor, m protoreflect.Map) (err error) {
	if f.MapKey().Kind() != protoreflect.StringKind || f.MapValue().Kind() != protoreflect.StringKind {
		return nil
	}
	size := 0
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		size += len(k.String()) + len(v.String())
		if control(k.String()) || control(v.String()) {
			err = invalid("%s: %q has control characters in its name or value", name, k.String())
		}
		return err == nil
	})
	if err == nil && size > maxMap {
		err = invalid("%s has %d bytes: at most %d are allowed", name, size, maxMap)
	}
	return err
}

func checkList(name string, f protoreflect.FieldDescriptor, l protoreflect.List) error {
	total := 0
	for i := range l.Len() {
		switch f.Kind() {
		case protoreflect.MessageKind:
			if err := checkMessage(name+".", l.Get(i).Message()); err != nil {
				return err
			}
		case protoreflect.StringKind:
			s := l.Get(i).String()
			if f.Name() != "mount_flags" {
				if err := checkString(name, f, s); err != nil {
					return err
				}
				continue
			}
			if total += len(s); total > maxFlags {
				return invalid("%s has more than %d bytes", name, maxFlags)
			}
			if control(s) {
				return invalid("%s has control characters", name)
			}
		}
	}
	return nil
}

func checkString(name string, f protoreflect.FieldDescriptor, s string) error {
	limit := maxString
	switch {
	case strings.HasSuffix(string(f.Name()), "_path"):
		limit = maxPath
	case f.Name() == "node_id":
		limit = maxNode
	}
	if len(s) > limit {
		return invalid("%s has %d bytes: at most %d are allowed", name, len(s), limit)
	}
	if control(s) {
		return invalid("%s %q has control characters", name, s)
	}
	return nil
}

// control finds the characters that the spec bans from names: U+0000-U+0008, U+000B, U+000C, U+000E-U+001F, U+007F-U+009F.
func control(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool {
		return c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c >= 0x7f && c <= 0x9f
	})
}

// required takes names and values of fields in turn, and names the first that is empty.
func required(fields ...string) error {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] == "" {
			return invalid("%s is missing", fields[i])
		}
	}
	return nil
}

// absolute takes names and values of paths in turn. Each must be there and absolute.
func absolute(fields ...string) error {
	if err := required(fields...); err != nil {
		return err
	}
	for i := 0; i+1 < len(fields); i += 2 {
		if !filepath.IsAbs(fields[i+1]) {
			return invalid("%s %q is no absolute path", fields[i], fields[i+1])
		}
	}
	return nil
}
