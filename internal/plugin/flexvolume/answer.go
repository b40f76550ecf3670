package flexvolume

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Statuses of an answer; anything else is a failure, as upstream takes it.
const (
	statusSuccess      = "Success"
	statusNotSupported = "Not supported"
)

// answerLimit is the most that a driver may answer, in bytes. What it writes beyond is read and dropped, so that it can end.
const answerLimit = 1 << 20

// Lengths, in bytes, of what is taken over from an answer.
const (
	messageLimit = 1024
	deviceLimit  = 4096
)

// answer is what a driver writes to its standard output, one JSON object (upstream DriverStatus). Keys are matched without
// regard to case, as upstream's are.
type answer struct {
	Status       string        `json:"status"`
	Message      string        `json:"message"`
	Device       string        `json:"device"`
	VolumeName   string        `json:"volumeName"`
	Attached     bool          `json:"attached"`
	NewSize      int64         `json:"volumeNewSize"` // bytes
	Capabilities *Capabilities `json:"capabilities"`
	// Warning is what a driver of ours says of an unmount that went well at a price (internal/flexvolume, Status).
	Warning string `json:"warning"`
}

// Capabilities are what a driver says of itself when it is asked to init. What it leaves out has upstream's default.
type Capabilities struct {
	// Attach: its volumes go through attach, waitforattach and mountdevice before mount.
	Attach bool `json:"attach"`
	// SELinuxRelabel: a container runtime may relabel its files.
	SELinuxRelabel bool `json:"selinuxRelabel"`
	// SupportsMetrics: statfs of the mounted volume tells how full it is.
	SupportsMetrics bool `json:"supportsMetrics"`
	// FSGroup: the node gives the files to the pod's fsGroup.
	FSGroup bool `json:"fsGroup"`
	// RequiresFSResize: after expandvolume, the node asks for expandfs.
	RequiresFSResize bool `json:"requiresFSResize"`
}

func defaultCapabilities() *Capabilities {
	return &Capabilities{Attach: true, SELinuxRelabel: true, FSGroup: true, RequiresFSResize: true}
}

// String tells the capabilities to a person.
func (c Capabilities) String() string {
	return fmt.Sprintf("attach %s, fsGroup %s, SELinux relabel %s, resize of the filesystem %s, metrics %s",
		yesNo(c.Attach), yesNo(c.FSGroup), yesNo(c.SELinuxRelabel), yesNo(c.RequiresFSResize), yesNo(c.SupportsMetrics))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// parseAnswer reads what a driver wrote. It must be one JSON object and nothing else: a driver that also prints what its tools
// say would one day print something that looks like an answer (upstream refuses it, too). The error does not quote it: there
// may be secrets in it.
func parseAnswer(out []byte) (answer, error) {
	if len(out) > answerLimit {
		return answer{}, fmt.Errorf("it answered more than %d bytes", answerLimit)
	}
	text := strings.TrimSpace(string(out))
	switch {
	case text == "":
		return answer{}, errors.New("it answered nothing: want one JSON object on standard output")
	case text[0] != '{':
		return answer{}, errors.New("it wrote something else before its answer: want one JSON object on standard output and nothing else")
	}
	a := answer{Capabilities: defaultCapabilities()}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return answer{}, fmt.Errorf("its answer is not a JSON object as it should be: %s", jsonProblem(err))
	}
	if a.Capabilities == nil { // "capabilities": null
		a.Capabilities = defaultCapabilities()
	}
	if len(a.Device) > deviceLimit || strings.ContainsFunc(a.Device, unicode.IsControl) {
		return answer{}, fmt.Errorf("the device in its answer has control characters, or more than %d bytes", deviceLimit)
	}
	if a.NewSize < 0 {
		return answer{}, fmt.Errorf("the volumeNewSize in its answer is %d", a.NewSize)
	}
	return a, nil
}

// jsonProblem names what is wrong without quoting the text.
func jsonProblem(err error) string {
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf("syntax error at byte %d", syntax.Offset)
	case errors.As(err, &wrongType):
		return fmt.Sprintf("%s is a %s where a %s belongs", wrongType.Field, strings.Fields(wrongType.Value)[0], wrongType.Type)
	}
	return "it can't be read"
}

// oneLine makes what a driver said fit for an event: one line, no control characters, at most limit bytes.
func oneLine(s string, limit int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
