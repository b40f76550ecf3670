package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Caller is one who has a volume mounted.
type Caller struct {
	// By is what kind of caller it is.
	By Kind `json:"by"`
	// ID tells it from others of its kind: what a container engine gives, or a path of the host.
	ID    string    `json:"id"`
	Since time.Time `json:"since"`
	// Boot of the machine in which it came. A container does not outlive it.
	Boot string `json:"boot"`
}

// Kind of a caller.
type Kind string

// The kinds of callers.
const (
	Engine Kind = "engine" // a container engine
	Host   Kind = "host"   // a path of the host, by `berth volume mount`
)

// callerPrefix begins the annotation of each caller on a holder pod. One for each: two that come at once do not
// overwrite one another.
const callerPrefix = "caller.storage.berth.io/"

// maxCallerID bounds what is kept of a caller; Docker's have 64 characters.
const maxCallerID = 4096

func (c Caller) validate() error {
	if c.ID == "" || len(c.ID) > maxCallerID {
		return refuse("the caller's ID has %d characters; want 1 to %d", len(c.ID), maxCallerID)
	}
	return nil
}

// key is the caller's annotation.
func (c Caller) key() string {
	sum := sha256.Sum256([]byte(string(c.By) + "\x00" + c.ID))
	return callerPrefix + hex.EncodeToString(sum[:12])
}

func (c Caller) value() string {
	b, err := json.Marshal(c)
	if err != nil {
		return "{}"
	}
	return string(b)
}

func (c Caller) String() string {
	since := ""
	if !c.Since.IsZero() {
		since = " since " + c.Since.Format(time.DateTime)
	}
	if c.By == Host {
		return "the mount at " + c.ID + since
	}
	id := c.ID
	if len(id) > 12 {
		id = id[:12]
	}
	return "a container (mount " + id + ")" + since
}

// callersOf reads who holds a volume by a pod. An annotation that cannot be read still is a caller: nothing is
// unmounted because somebody edited it.
func callersOf(pod *corev1.Pod) []Caller {
	var found []Caller
	for key, value := range pod.Annotations {
		rest, is := strings.CutPrefix(key, callerPrefix)
		if !is {
			continue
		}
		var c Caller
		if err := json.Unmarshal([]byte(value), &c); err != nil || c.key() != key {
			c = Caller{By: Engine, ID: rest}
		}
		found = append(found, c)
	}
	slices.SortFunc(found, func(a, b Caller) int { return strings.Compare(a.String(), b.String()) })
	return found
}

// callersInWords names at most a few.
func callersInWords(callers []Caller) string {
	const most = 3
	var parts []string
	for i, c := range callers {
		if i == most {
			parts = append(parts, fmt.Sprintf("%d more", len(callers)-most))
			break
		}
		parts = append(parts, c.String())
	}
	return strings.Join(parts, ", ")
}
