package proxy

import (
	"context"
	"path"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Kind of a fault.
type Kind string

const (
	Kill  Kind = "kill"  // the driver's process is killed while it works on the RPC
	Cut   Kind = "cut"   // the connection breaks while it does
	Late  Kind = "late"  // the caller's deadline passes, and the request reaches the driver afterwards
	Lost  Kind = "lost"  // the driver answers, and the answer is lost
	Twice Kind = "twice" // the driver is sent the request a second time after its answer
)

// What a record says of a call that was spoilt.
const (
	killText  = "driver killed during the call"
	cutText   = "connection cut during the call"
	lostText  = "answer lost"
	againText = "sent twice: the second time"
	lateText  = "delivered after its deadline"
	goneText  = "the driver could not be reached"
)

// lateBy is how long after its caller's deadline a late request arrives: about when the caller asks again.
const lateBy = 50 * time.Millisecond

// lateWithin bounds a delivery that nobody waits for.
const lateWithin = 20 * time.Second

// Rule spoils the first call by Kubernetes that it fits.
type Rule struct {
	Kind    Kind
	Method  string
	Fits    func(request proto.Message) bool
	Killing time.Duration // Kill, Cut: how long the driver may work before it happens
	Kill    func()        // Kill: ends the driver and starts it again

}

// Inject arms rules. They stay until they have fired or Disarm is called.
func (p *Proxy) Inject(rules ...*Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, rules...)
}

// Disarm takes all rules away and returns the methods of those that did not fire. It returns when late requests have
// been answered.
func (p *Proxy) Disarm() (unfired []string) {
	p.mu.Lock()
	for _, r := range p.faults {
		unfired = append(unfired, r.Method)
	}
	p.faults = nil
	p.mu.Unlock()
	p.late.Wait()
	return unfired
}

// take returns the rule for a call, or nil.
func (p *Proxy) take(from, full string, request frame) *Rule {
	p.mu.Lock()
	defer p.mu.Unlock()
	if from != Kubernetes || len(p.faults) == 0 {
		return nil
	}
	c := newCall(from, full, request)
	for i, r := range p.faults {
		if r.Method == path.Base(full) && c.Request != nil && (r.Fits == nil || r.Fits(c.Request)) {
			p.faults = slices.Delete(p.faults, i, i+1)
			return r
		}
	}
	return nil
}

// play passes the call on as the rule has it; no rule passes it on as it is.
func (r *Rule) play(ctx context.Context, p *Proxy, from, full string, request frame, u *Upstream) (frame, error) {
	if r == nil {
		return p.forward(ctx, from, "", full, request, u)
	}
	switch r.Kind {
	case Kill:
		return r.interrupt(ctx, p, from, full, request, u, killText, r.Kill)
	case Cut:
		return r.interrupt(ctx, p, from, full, request, u, cutText, u.cut)
	case Lost:
		_, _ = p.forward(ctx, from, lostText, full, request, u)
		return nil, status.Error(codes.Unavailable, "berth try: the answer was lost")
	case Late:
		p.late.Go(func() {
			time.Sleep(lateBy) // the fault itself: the network holds the request back
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lateWithin)
			defer cancel()
			_, _ = p.forward(ctx, Fault, lateText, full, request, u)
		})
		return nil, status.Error(codes.DeadlineExceeded, "berth try: the deadline has passed")
	case Twice:
		response, err := p.forward(ctx, from, "", full, request, u)
		if err == nil {
			_, _ = p.forward(ctx, Fault, againText, full, request, u)
		}
		return response, err
	}
	return p.forward(ctx, from, "", full, request, u)
}

// interrupt lets the driver begin, then does what ends the call. An answer that came before is lost with it.
func (r *Rule) interrupt(ctx context.Context, p *Proxy, from, full string, request frame, u *Upstream, text string, end func()) (frame, error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = p.forward(ctx, from, text, full, request, u)
	}()
	t := time.NewTimer(r.Killing)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
	}
	end()
	<-done
	return nil, status.Error(codes.Unavailable, "berth try: "+text)
}
