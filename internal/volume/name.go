package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// NameAnnotation on a claim is the volume's name, where that is no name for a claim.
const NameAnnotation = "storage.berth.io/volume-name"

// maxName leaves room for the digits that make a name unique among the 253 characters of an object's name.
const maxName = 240

// names are those that Docker and Podman take.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ValidateName refuses what container engines refuse.
func ValidateName(name string) error {
	switch {
	case name == "":
		return refuse("the volume's name is empty")
	case len(name) > maxName:
		return refuse("the volume's name is longer than %d characters", maxName)
	case !names.MatchString(name):
		return refuse("volume name %q: want letters, digits, '_', '.' and '-', the first a letter or a digit", name)
	}
	return nil
}

// ClaimName is the name of the claim, and of the holder pod, of a volume. A name that a claim can have is kept; another
// (Docker's may have capitals and underscores) becomes one, with digits from which no two names have the same.
func ClaimName(name string) string {
	if len(validation.IsDNS1123Subdomain(name)) == 0 {
		return name
	}
	plain := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, name)
	sum := sha256.Sum256([]byte(name))
	return strings.Trim(plain, "-") + "-" + hex.EncodeToString(sum[:5])
}

// NameOf is the name of the volume of a claim.
func NameOf(c *corev1.PersistentVolumeClaim) string {
	if name := c.Annotations[NameAnnotation]; name != "" {
		return name
	}
	return c.Name
}

// RefusedError is a request that cannot be met as it is: the words are for whoever made it.
type RefusedError struct{ why string }

func (e *RefusedError) Error() string { return e.why }

func refuse(format string, args ...any) error { return &RefusedError{fmt.Sprintf(format, args...)} }
