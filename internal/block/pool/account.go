package pool

import "fmt"

// Sizes in bytes.
const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	// quantum: the backing grows and shrinks by multiples of it.
	quantum = 64 * mib
	// VolumeQuantum is the unit of volume sizes: requests are rounded up to it.
	VolumeQuantum = mib
	// marginPercent of the backing is kept for XFS's own metadata: extent maps of fragmented files, inodes, and the
	// reservations of each allocation group for reflink.
	marginPercent = 4
	// fixedOverhead beside the log: XFS's reserved blocks (32 MiB at most), the root, descriptions of volumes.
	fixedOverhead = 64 * mib
)

// account is the arithmetic of the pool's promise. It has no clock and no I/O; the invariant is
// reserved <= usable(backed), and every method that changes something keeps it or returns an error.
type account struct {
	limit    int64 // the pool may not grow beyond it
	log      int64 // XFS's internal log
	size     int64 // of the XFS filesystem
	ballast  int64 // bytes of it that the ballast holds: not backed by the host
	reserved int64 // promised to volumes
}

// backed is what the host has allocated and XFS can use.
func (a account) backed() int64 { return a.size - a.ballast }

// usable is how much of a backing may be promised to volumes.
func (a account) usable(backed int64) int64 {
	u := backed - backed/100*marginPercent - a.log - fixedOverhead
	return max(0, u/mib*mib)
}

// free may be promised at once.
func (a account) free() int64 { return max(0, a.usable(a.backed())-a.reserved) }

// backingFor is the smallest backing, in quanta, of which promised bytes are usable.
func (a account) backingFor(promised int64) int64 {
	b := (promised + a.log + fixedOverhead + mib) / (100 - marginPercent) * 100
	b = (b + quantum) / quantum * quantum
	for b > quantum && a.usable(b-quantum) >= promised {
		b -= quantum
	}
	for a.usable(b) < promised {
		b += quantum
	}
	return b
}

// reserve promises n bytes; false when the backing must grow first.
func (a *account) reserve(n int64) bool {
	if n < 0 || n > a.free() {
		return false
	}
	a.reserved += n
	return true
}

// release takes a promise back.
func (a *account) release(n int64) { a.reserved = max(0, a.reserved-n) }

// takeBack withdraws up to n bytes from use and returns how much: what remains backed covers the promises and keep
// more. To be called before the ballast takes the space, so that a promise made meanwhile finds the smaller backing.
func (a *account) takeBack(n, keep int64) int64 {
	n = min(n, a.backed()-a.backingFor(a.reserved+keep)) / quantum * quantum
	if n <= 0 {
		return 0
	}
	a.ballast += n
	return n
}

// grown notes that XFS has size bytes now; deflated that the ballast holds n bytes less.
func (a *account) grown(size int64) { a.size = max(a.size, size) }
func (a *account) deflated(n int64) { a.ballast = max(0, a.ballast-n) }

// check reports a broken promise.
func (a account) check() error {
	if a.reserved > a.usable(a.backed()) {
		return fmt.Errorf("pool over-promised: %d bytes reserved of %d usable (%d backed)", a.reserved, a.usable(a.backed()), a.backed())
	}
	return nil
}

// plan is how to back promised bytes more than now: first let the ballast go, then grow the file.
type plan struct{ deflate, growTo int64 }

// planFor makes room for promised bytes in all, at most up to the limit; false when that is beyond it.
func (a account) planFor(promised int64) (plan, bool) {
	need := a.backingFor(promised) - a.backed()
	if need <= 0 {
		return plan{}, true
	}
	if a.backed()+need > max(a.limit, a.backed()) {
		// The last quantum may be cut short by the limit.
		need = a.limit - a.backed()
		if need <= 0 || a.usable(a.limit) < promised {
			return plan{}, false
		}
	}
	p := plan{deflate: min(need, a.ballast)}
	if rest := need - p.deflate; rest > 0 {
		p.growTo = a.size + rest
	}
	return p, true
}

// headroom is how much promisable space is kept ready ahead of use.
func (a account) headroom() int64 { return min(max(a.limit/8, 256*mib), 4*gib) }

// initialSize of a pool file that may grow to limit, and the size of XFS's allocation groups, which is fixed for life:
// at most 64 groups up to a limit of 1 TiB, and enough of them to allocate in parallel from the first day.
func initialSize(limit int64) (size, group int64) {
	size = min(max(limit/16, 4*gib), 64*gib)
	size = min(size, limit) / quantum * quantum
	return size, size / 4 / mib * mib
}

// minimumPool is the smallest pool: XFS wants 300 MiB, and a log of 64 MiB leaves some room for volumes.
const minimumPool = 512 * mib

// defaultLimit is the pool's share of the host's disk: three quarters of what is free or already the pool's, so that it is
// the same at each start, and the rest of the machine keeps a quarter.
func defaultLimit(hostFree, allocated int64) int64 {
	return (hostFree + allocated) / 4 * 3 / quantum * quantum
}

// hostReserve is what growing always leaves free on the host's disk, whatever the limit.
func hostReserve(hostTotal int64) int64 { return min(hostTotal/20, gib) }
