package node

import (
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// backoff doubles from base to limit.
type backoff struct {
	base, limit, now time.Duration
}

func (b *backoff) next() time.Duration {
	if b.now == 0 {
		b.now = b.base
	} else {
		b.now = min(2*b.now, b.limit)
	}
	return b.now
}

func (b *backoff) reset() { b.now = 0 }

// newerVersion compares resource versions; what cannot be compared counts as newer.
func newerVersion(a, b string) bool {
	if a == b {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || order > 0
}
