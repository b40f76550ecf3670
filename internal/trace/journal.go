package trace

import "time"

// Journal takes entries off the hot path.
type Journal struct {
	entries chan Entry
}

// Record notes e, stamped with the time now unless it has one. It never blocks: when the writer is behind, the oldest
// entries win and the loss is counted.
func (j *Journal) Record(e Entry) {
	if j == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	select {
	case j.entries <- e:
	default:
	}
}
