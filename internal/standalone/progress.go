package standalone

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress tells a person what happens, each line with the seconds since the start.
type progress struct {
	w     io.Writer
	began time.Time
	mu    *sync.Mutex
}

func newProgress(w io.Writer, began time.Time) progress {
	if w == nil {
		w = io.Discard
	}
	return progress{w: w, began: began, mu: &sync.Mutex{}}
}

func (p progress) line(format string, args ...any) { p.at(time.Now(), format, args...) }

// at is line for something that happened a moment ago.
func (p progress) at(t time.Time, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "%7.3fs  %s\n", t.Sub(p.began).Seconds(), fmt.Sprintf(format, args...))
}
