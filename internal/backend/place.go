package backend

import "context"

// Place says on which nodes a volume may be. A backend whose volumes are all on one node takes no notice of it: its driver has
// checked it already.
type Place struct {
	// Requisite: on one of these; empty: on any.
	Requisite []string
	// Preferred of them, the best first.
	Preferred []string
}

// Placer is a Controller that chooses among several nodes. Its Volumes and Snapshots name theirs.
type Placer interface {
	// CapacityOf is what new volumes may have on node; zero where it offers nothing.
	CapacityOf(ctx context.Context, node string) (Capacity, error)
}
