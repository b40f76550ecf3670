package flexvolume

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Options is the JSON argument of a call-out, checked (upstream's OptionsForDriver and addSecretsToOptions).
type Options struct {
	FSType   string // "" where the volume names none
	ReadOnly bool
	// Name is the PersistentVolume's name, or that of the volume within its pod.
	Name string
	// FSGroup is the pod's, at mount; nil where it has none.
	FSGroup *int64
	Pod     Pod
	// Secrets are decoded; the host sends them to mount and unmount alone.
	Secrets map[string]Secret
	// User is what the volume's author wrote under `options`.
	User map[string]string
}

// Pod is whom a mount is for.
type Pod struct{ Name, Namespace, UID, ServiceAccount string }

// Secret is a value that must not be printed; a conversion to string reads it.
type Secret string

// String keeps the value out of messages.
func (Secret) String() string { return "(secret)" }

// GoString does so for %#v.
func (Secret) GoString() string { return "(secret)" }

// Keys of the protocol.
const (
	keyPrefix         = "kubernetes.io/"
	keyFSType         = keyPrefix + "fsType"
	keyReadWrite      = keyPrefix + "readwrite"
	keyName           = keyPrefix + "pvOrVolumeName"
	keyFSGroup        = keyPrefix + "mounterArgs.FsGroup"
	keyPodName        = keyPrefix + "pod.name"
	keyPodNamespace   = keyPrefix + "pod.namespace"
	keyPodUID         = keyPrefix + "pod.uid"
	keyServiceAccount = keyPrefix + "serviceAccount.name"
	keySecretPrefix   = keyPrefix + "secret/"
)

// valueLimit bounds one option, in bytes: a path's own limit.
const valueLimit = 4095

// ParseOptions reads a call-out's JSON argument. No error quotes a value: it may be a secret.
func ParseOptions(text string) (*Options, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("the options are not JSON: wrong at byte %d of %d", syntax.Offset, len(text))
		}
		return nil, errors.New("the options are not a JSON object")
	}
	if raw == nil {
		return nil, errors.New("the options are null, not a JSON object")
	}
	o := &Options{Secrets: map[string]Secret{}, User: map[string]string{}}
	for _, key := range sortedKeys(raw) {
		var value string
		if bytes.Equal(raw[key], []byte("null")) || json.Unmarshal(raw[key], &value) != nil {
			return nil, fmt.Errorf("option %s is not a string: put its value in quotes", shown(key))
		}
		if err := o.set(key, value); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *Options) set(key, value string) error {
	if name, is := strings.CutPrefix(key, keySecretPrefix); is {
		decoded, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return fmt.Errorf("option %s is not base64", shown(key))
		}
		o.Secrets[name] = Secret(decoded)
		return nil
	}
	if len(value) > valueLimit {
		return fmt.Errorf("option %s has %d bytes; at most %d are allowed", shown(key), len(value), valueLimit)
	}
	switch key {
	case keyFSType:
		o.FSType = value
	case keyReadWrite:
		if value != "rw" && value != "ro" {
			return fmt.Errorf("option %s is neither ro nor rw", key)
		}
		o.ReadOnly = value == "ro"
	case keyName:
		o.Name = value
	case keyFSGroup:
		group, err := strconv.ParseInt(value, 10, 64)
		if err != nil || group < 0 || group > 1<<32-2 { // (gid_t)-1 is "no change"
			return fmt.Errorf("option %s is no group id", key)
		}
		o.FSGroup = &group
	case keyPodName:
		o.Pod.Name = value
	case keyPodNamespace:
		o.Pod.Namespace = value
	case keyPodUID:
		o.Pod.UID = value
	case keyServiceAccount:
		o.Pod.ServiceAccount = value
	default:
		if !strings.HasPrefix(key, keyPrefix) { // a later host may say more
			o.User[key] = value
		}
	}
	return nil
}

// Only refuses user's options that the driver does not know: a misspelt one would be ignored in silence.
func (o *Options) Only(known ...string) error {
	for _, key := range sortedKeys(o.User) {
		if !slices.Contains(known, key) {
			return fmt.Errorf("option %s is not one of %s", shown(key), strings.Join(known, ", "))
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// shown is a key in a message: quoted, and cut where it is long.
func shown(key string) string {
	if len(key) > 64 {
		return strconv.Quote(key[:64]) + "…"
	}
	return strconv.Quote(key)
}
