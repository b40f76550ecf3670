package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
)

// room is what a node offers.
type room struct {
	node string
	backend.Capacity
	// away: why nothing can be made there now; empty: it can.
	away string
}

// rooms are the nodes that offer storage, ordered by name. What is being made is taken off: their pools tell of it later.
func (b *Backend) rooms() []room {
	byName := map[string]*room{}
	for _, p := range objects.Of[api.BlockPool](b.pools, "", "") {
		if p.Spec.Pool != "" { // one pool of a node is served
			continue
		}
		r := &room{node: p.Spec.Node, away: b.whyAway(p.Spec.Node), Capacity: backend.Capacity{
			Total: p.Status.CapacityBytes, Available: p.Status.AvailableBytes, MaximumVolume: p.Status.MaximumVolumeBytes, MinimumVolume: p.Status.MinimumVolumeBytes,
		}}
		for _, v := range objects.Of[api.BlockVolume](b.volumes, byPending, r.node) {
			r.Available -= b.RoundSize(v.Spec.SizeBytes)
		}
		r.Available = max(0, r.Available)
		byName[r.node] = r
	}
	out := make([]room, 0, len(byName))
	for _, r := range byName {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b room) int { return strings.Compare(a.node, b.node) })
	return out
}

// choose picks the node of a new volume of so many bytes: of those that may be and were not tried, the first preferred one with room,
// else the one with most room. ErrNoSpace, ErrTooLarge.
func choose(rooms []room, place backend.Place, bytes int64, tried map[string]bool) (string, error) {
	var may []room
	for _, r := range rooms {
		if len(place.Requisite) == 0 || slices.Contains(place.Requisite, r.node) {
			may = append(may, r)
		}
	}
	where := "any node"
	if len(place.Requisite) > 0 {
		where = "node " + strings.Join(place.Requisite, ", ")
	}
	if len(may) == 0 {
		return "", fmt.Errorf("%w: no pool on %s: the agent (DaemonSet berth-node) makes one where it runs", backend.ErrNoSpace, where)
	}
	var fit []room
	var reasons []string
	beyondAll := true
	for _, r := range may {
		beyondAll = beyondAll && r.away == "" && r.Total > 0 && bytes > r.Total
		switch {
		case tried[r.node]:
			continue
		case r.away != "":
			reasons = append(reasons, r.away)
		case r.Available < bytes || r.Available <= 0:
			reasons = append(reasons, fmt.Sprintf("node %s has %d bytes available", r.node, r.Available))
		default:
			fit = append(fit, r)
		}
	}
	if len(fit) == 0 {
		if beyondAll {
			return "", fmt.Errorf("%w: %d bytes, more than the pool on %s could ever hold", backend.ErrTooLarge, bytes, where)
		}
		return "", fmt.Errorf("%w for %d bytes: %s", backend.ErrNoSpace, bytes, strings.Join(reasons, "; "))
	}
	rank := func(r room) int {
		if i := slices.Index(place.Preferred, r.node); i >= 0 {
			return i
		}
		return len(place.Preferred)
	}
	slices.SortStableFunc(fit, func(a, b room) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.Available, a.Available))
	})
	return fit[0].node, nil
}

// Capacity implements backend.Controller: that of all nodes together.
func (b *Backend) Capacity(ctx context.Context) (backend.Capacity, error) {
	if err := b.synced(ctx); err != nil {
		return backend.Capacity{}, err
	}
	var all backend.Capacity
	for _, r := range b.rooms() {
		all.Total += r.Total
		if r.away != "" {
			continue
		}
		all.Available += r.Available
		all.MaximumVolume = max(all.MaximumVolume, min(r.MaximumVolume, r.Available))
		all.MinimumVolume = max(all.MinimumVolume, r.MinimumVolume)
	}
	return all, nil
}

// CapacityOf implements backend.Placer.
func (b *Backend) CapacityOf(ctx context.Context, node string) (backend.Capacity, error) {
	if err := b.synced(ctx); err != nil {
		return backend.Capacity{}, err
	}
	for _, r := range b.rooms() {
		if r.node == node && r.away == "" {
			r.MaximumVolume = min(r.MaximumVolume, r.Available)
			return r.Capacity, nil
		}
	}
	return backend.Capacity{}, nil
}
