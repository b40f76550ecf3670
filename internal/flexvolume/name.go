package flexvolume

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
)

// nameLimit is a file name's, with room for what a host adds.
const nameLimit = 200

// FileName makes text the name of a file, different texts different names: what is no letter, digit, dot, dash or underscore
// becomes %XX; what is too long ends in a hash.
func FileName(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || c == '-' || c == '_' || c == '.' && b.Len() > 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	name := b.String()
	if len(name) > nameLimit {
		h := fnv.New128a()
		_, _ = h.Write([]byte(text))
		name = fmt.Sprintf("%s-%x", name[:nameLimit-33], h.Sum(nil))
	}
	return name
}

// Type refuses a kubernetes.io/fsType that is none of the driver's.
func (o *Options) Type(served ...string) error {
	if o.FSType != "" && !slices.Contains(served, o.FSType) {
		return fmt.Errorf("fsType %s is not one of %s", shown(o.FSType), strings.Join(served, ", "))
	}
	return nil
}
