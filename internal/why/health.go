package why

import (
	"slices"
	"strings"
	"time"

	"berth.io/berth/internal/trace"
)

// Unwell is a mounted volume whose driver says that it is not well.
type Unwell struct {
	PV    string          `json:"pv,omitempty"` // empty for an inline volume
	Claim trace.ObjectRef `json:"claim,omitzero"`
	Pod   trace.ObjectRef `json:"pod"`
	// Name is the pod's for the volume.
	Name string `json:"name"`
	// Problems in the driver's words: "DEGRADED (OnePath): one path is left".
	Problems []string  `json:"problems"`
	Since    time.Time `json:"since,omitzero"`
}

// Reasons of the events by which the node tells of a volume's health.
const (
	eventAbnormal = "VolumeConditionAbnormal"
	eventNormal   = "VolumeConditionNormal"
)

// tellHealth adds what the volume's driver says of it. A volume that does not get on for another reason keeps that as its problem.
func tellHealth(f *facts, vf *volumeFacts, s Sources, v *Volume) {
	problems, since, from := unwell(f, vf, s)
	if len(problems) == 0 {
		return
	}
	v.Unwell = problems
	p := &Problem{Cause: "volume-not-well", What: "The driver says that the volume is not well: " + strings.Join(problems, "; ") + ".", Advice: healthAdvice(problems),
		From: from, Time: since}
	if v.Problem == nil {
		v.Problem = p
		return
	}
	v.Note = strings.TrimPrefix(v.Note+"; "+p.What+" "+p.Advice, "; ")
}

// unwell asks the running instance's knowledge, else the storage's own objects, else the pod's events, which the API keeps for an hour.
func unwell(f *facts, vf *volumeFacts, s Sources) (problems []string, since time.Time, from string) {
	for i := range s.Unwell {
		u := &s.Unwell[i]
		ofPod := f.pod != nil && u.Pod.UID == f.pod.UID && u.Name == vf.name
		if u.PV != "" && u.PV == vf.pvName || ofPod {
			return u.Problems, u.Since, "its driver"
		}
	}
	if s.Problem != nil && vf.pv != nil && vf.pv.Spec.CSI != nil {
		if p := s.Problem(vf.pv.Spec.CSI.Driver, vf.pv.Spec.CSI.VolumeHandle); p != "" {
			return []string{p}, time.Time{}, "its storage's object"
		}
	}
	if s.Unwell != nil || vf.name == "" {
		return nil, time.Time{}, ""
	}
	for _, e := range slices.Backward(f.podEvents) {
		about, text, found := strings.Cut(e.Message, ": ")
		if !found || about != "Volume "+vf.name {
			continue
		}
		switch e.Reason {
		case eventNormal:
			return nil, time.Time{}, ""
		case eventAbnormal:
			return strings.Split(text, "; "), eventTime(&e), "event " + e.Reason
		}
	}
	return nil, time.Time{}, ""
}

// healthAdvice is by the worst of the kinds that CSI knows.
func healthAdvice(problems []string) string {
	for _, k := range []struct{ kind, advice string }{
		{"DATA_LOSS", "Data is lost: restore the volume from a snapshot or a backup, into a new claim."},
		{"INACCESSIBLE", "Its data cannot be reached now. See the log of the driver and the state of its storage; once that is mended, delete the pod so that the volume is mounted anew."},
		{"DEGRADED", "It still works. Take a snapshot or a backup now, and see the log of the driver for what to mend."},
	} {
		if slices.ContainsFunc(problems, func(p string) bool { return strings.HasPrefix(p, k.kind) }) {
			return k.advice
		}
	}
	return "See the log of the driver and the state of its storage."
}

// unwell adds what drivers say of their volumes to what needs attention: a volume that several pods use once.
func (w *surveyor) unwell(all []Unwell) {
	told := map[string]bool{}
	for i := range all {
		u := &all[i]
		kind, about := PVC, u.Claim
		if about.Name == "" {
			kind, about = Pod, u.Pod
		}
		key := string(kind) + "/" + about.Namespace + "/" + about.Name + "/" + u.PV
		if u.PV == "" {
			key += u.Name
		}
		if !told[key] {
			told[key] = true
			w.attend(kind, about.Namespace, about.Name, "not well: "+strings.Join(u.Problems, "; "), u.Since)
		}
	}
}
