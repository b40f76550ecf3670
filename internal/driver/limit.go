package driver

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// attachLimit counts the volumes that are attached to this node, so that no more are than NodeGetInfo promises. The
// scheduler keeps to that number by itself; this is for callers that do not.
type attachLimit struct {
	most int64

	mu    sync.Mutex
	known bool
	ids   map[string]bool
}

// reserve takes a place for id, or says that there is none. release is to be called when the volume could not be attached.
func (l *attachLimit) reserve(ctx context.Context, b backend.Controller, id string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known {
		volumes, err := b.List(ctx)
		if err != nil {
			return nil, err
		}
		l.ids = map[string]bool{}
		for _, v := range volumes {
			if len(v.Nodes) > 0 {
				l.ids[v.ID] = true
			}
		}
		l.known = true
	}
	if l.ids[id] {
		return func() {}, nil
	}
	if int64(len(l.ids)) >= l.most {
		// ControllerPublishVolume Errors: "Max volumes attached".
		return nil, status.Errorf(codes.ResourceExhausted, "%d volumes are attached to this node, and no more are allowed: detach one first", len(l.ids))
	}
	l.ids[id] = true
	return func() {
		// Somebody else may have attached it meanwhile.
		if v, err := b.Get(ctx, id); err != nil || len(v.Nodes) == 0 {
			l.forget(id)
		}
	}, nil
}

func (l *attachLimit) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ids, id)
}
