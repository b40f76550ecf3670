package pool

import "slices"

// Capacity of a pool, in bytes that volumes can have.
type Capacity struct {
	// Total is what all volumes together may have, given the pool's limit.
	Total int64 `json:"total"`
	// Reserved is what they have.
	Reserved int64 `json:"reserved"`
	// Available is what new ones may have now: less than Total-Reserved when the host's disk is short.
	Available int64 `json:"available"`
	// Backed is what the host's disk has allocated for the pool.
	Backed int64 `json:"backed"`
}

// Capacity of the pool at this moment.
func (p *Pool) Capacity() Capacity {
	p.mu.Lock()
	a := p.account
	p.mu.Unlock()
	most := max(a.limit, a.backed())
	c := Capacity{Total: a.usable(most), Reserved: a.reserved, Backed: a.backed()}
	reach := a.backed()
	if p.image != nil {
		if free, total, err := hostSpace(p.o.Dir); err == nil {
			reach = min(most, a.backed()+max(0, free-hostReserve(total))/quantum*quantum)
		}
	}
	c.Available = max(0, a.usable(max(reach, a.backed()))-a.reserved)
	return c
}

// OnCapacityChange has f called, in order and from any goroutine, after the capacity changed. f must not block.
func (p *Pool) OnCapacityChange(f func()) {
	p.mu.Lock()
	p.changed = append(p.changed, f)
	p.mu.Unlock()
}

func (p *Pool) changedCapacity() {
	p.kick()
	p.mu.Lock()
	calls := slices.Clone(p.changed)
	p.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// Damaged names the volume directories that could not be read at Open; their files were left as they are.
func (p *Pool) Damaged() []string { return slices.Clone(p.damaged) }
