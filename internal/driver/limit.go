package driver

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// attachLimit counts the volumes that are attached to each node, so that no more are than NodeGetInfo promises. The scheduler
// keeps to that number by itself; this is for callers that do not.
type attachLimit struct {
	most int64

	mu    sync.Mutex
	nodes map[string]map[string]bool // node → ids; nil: not known yet
}

// reserve takes a place on node for id, or says that there is none. release is to be called when the volume could not be attached.
func (l *attachLimit) reserve(ctx context.Context, b backend.Controller, id, node string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes == nil {
		volumes, err := b.List(ctx)
		if err != nil {
			return nil, err
		}
		l.nodes = map[string]map[string]bool{}
		for _, v := range volumes {
			for _, n := range v.Nodes {
				l.add(n, v.ID)
			}
		}
	}
	if l.nodes[node][id] {
		return func() {}, nil
	}
	if n := len(l.nodes[node]); int64(n) >= l.most {
		// ControllerPublishVolume Errors: "Max volumes attached".
		return nil, status.Errorf(codes.ResourceExhausted, "%d volumes are attached to node %s, and no more are allowed: detach one first", n, node)
	}
	l.add(node, id)
	return func() {
		// Somebody else may have attached it meanwhile.
		if v, err := b.Get(ctx, id); err != nil || !slices.Contains(v.Nodes, node) {
			l.forget(id, node)
		}
	}, nil
}

func (l *attachLimit) add(node, id string) {
	if l.nodes[node] == nil {
		l.nodes[node] = map[string]bool{}
	}
	l.nodes[node][id] = true
}

// forget: id is attached to node no longer; to no node when it is empty.
func (l *attachLimit) forget(id, node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, ids := range l.nodes {
		if node == "" || node == n {
			delete(ids, id)
		}
		if len(ids) == 0 {
			delete(l.nodes, n)
		}
	}
}
