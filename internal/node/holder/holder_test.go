package holder

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestReady(t *testing.T) {
	for name, c := range map[string]struct {
		phase     v1.PodPhase
		condition v1.ConditionStatus
		want      bool
	}{
		"running and ready":   {v1.PodRunning, v1.ConditionTrue, true},
		"running, not ready":  {v1.PodRunning, v1.ConditionFalse, false},
		"no condition":        {v1.PodRunning, "", false},
		"ended, still marked": {v1.PodSucceeded, v1.ConditionTrue, false},
	} {
		p := &v1.Pod{Status: v1.PodStatus{Phase: c.phase}}
		if c.condition != "" {
			p.Status.Conditions = []v1.PodCondition{{Type: v1.PodReady, Status: c.condition}}
		}
		if got, _ := Ready(p); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzPaths(f *testing.F) {
	f.Add(`{"data":"/v/data"}`)
	f.Add(`["data"]`)
	f.Add(``)
	f.Fuzz(func(t *testing.T, text string) {
		p := &v1.Pod{}
		p.Annotations = map[string]string{PathsAnnotation: text}
		_ = Paths(p)["data"]
	})
}
