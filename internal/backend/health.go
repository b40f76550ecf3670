package backend

import "context"

// StorageHealth is what a backend can tell of the storage below all of its volumes, beyond what it tells of each.
type StorageHealth interface {
	// StorageProblem in words, which say what to do; empty: none known.
	StorageProblem(ctx context.Context) string
}
