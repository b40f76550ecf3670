package apiclient

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// Both ways in which the libraries log an event are seen at Debug alone; what else they log is as it was.
func TestEventsAreDetail(t *testing.T) {
	defer klog.ClearLogger()
	for _, c := range []struct {
		name   string
		level  slog.Level
		events int
	}{{"at -v 0", slog.LevelInfo, 0}, {"at -v 4", slog.LevelDebug, 2}} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			LogTo(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: c.level})))
			klog.V(0).InfoS("Event occurred", "object", "ns/a", "reason", "Provisioning") // as StartStructuredLogging(0)
			klog.Infof("Event(%#v): type: '%v' reason: '%v' %v", v1.ObjectReference{Kind: "PersistentVolumeClaim"}, "Normal", "Provisioning", "it begins")
			klog.Background().WithName("controller").WithValues("driver", "d").Info("something else")
			klog.Background().Error(nil, "Event occurred, and could not be written")
			text := out.String()
			if n := strings.Count(text, "reason"); n != c.events {
				t.Errorf("%d lines tell of the two events:\n%s", n, text)
			}
			for _, want := range []string{"something else", "could not be written", "component=kubernetes"} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not logged:\n%s", want, text)
				}
			}
		})
	}
}
