package apiclient

import (
	"context"
	"log/slog"
	"strings"

	"k8s.io/klog/v2"
)

// LogTo has klog, which client-go and the sidecars' libraries speak, write to log.
//
// Some of these libraries log at Info each event that they also record with the API, where its reader looks for it: that is detail here.
func LogTo(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(eventsAreDetail{log.Handler()}).With("component", "kubernetes"))
}

// eventsAreDetail logs events at Debug, which `-v 4` shows.
type eventsAreDetail struct{ slog.Handler }

func (h eventsAreDetail) Handle(ctx context.Context, r slog.Record) error {
	if r.Level == slog.LevelInfo && isEvent(r.Message) {
		if r.Level = slog.LevelDebug; !h.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

// isEvent knows the two ways in which client-go's broadcaster logs (k8s.io/client-go/tools/record: StartStructuredLogging, StartLogging).
func isEvent(message string) bool {
	return message == "Event occurred" || strings.HasPrefix(message, "Event(v1.ObjectReference{")
}

func (h eventsAreDetail) WithAttrs(a []slog.Attr) slog.Handler {
	return eventsAreDetail{h.Handler.WithAttrs(a)}
}

func (h eventsAreDetail) WithGroup(name string) slog.Handler {
	return eventsAreDetail{h.Handler.WithGroup(name)}
}
