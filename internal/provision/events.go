package provision

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
)

// quickly is how soon a volume is to be there for nobody to be told that it was begun.
const quickly = 3 * time.Second

// What sig-storage-lib tells of a claim.
const (
	eventBegun = "Provisioning"
	eventDone  = "ProvisioningSucceeded"
)

// terse is a client through which a volume that is made quickly costs one event, and not two: that it was begun is told a moment later, or
// when something else is told of its claim, and not at all once it was made. In a rush of claims each event is one more write
// that the API server's disk has to keep up with.
type terse struct {
	kubernetes.Interface
	begun *begun
}

func newTerse(ctx context.Context, client kubernetes.Interface) kubernetes.Interface {
	return terse{client, &begun{ctx: ctx, held: map[types.UID]heldEvent{}}}
}

func (c terse) CoreV1() typedcore.CoreV1Interface { return terseCore{c.Interface.CoreV1(), c.begun} }

type terseCore struct {
	typedcore.CoreV1Interface
	begun *begun
}

func (c terseCore) Events(namespace string) typedcore.EventInterface {
	return terseEvents{c.CoreV1Interface.Events(namespace), c.begun}
}

// terseEvents is the sink of the library's broadcaster, which is told of one event after the other.
type terseEvents struct {
	typedcore.EventInterface
	begun *begun
}

func (e terseEvents) CreateWithEventNamespace(event *v1.Event) (*v1.Event, error) {
	return e.CreateWithEventNamespaceWithContext(context.Background(), event)
}

func (e terseEvents) CreateWithEventNamespaceWithContext(ctx context.Context, event *v1.Event) (*v1.Event, error) {
	claim := event.InvolvedObject.UID
	switch {
	case event.Type == v1.EventTypeNormal && event.Reason == eventBegun && event.Count <= 1:
		e.begun.hold(claim, event.DeepCopy(), e.EventInterface)
		return event, nil
	case event.Reason == eventDone:
		e.begun.take(claim)
	default:
		if held, ok := e.begun.take(claim); ok {
			held.tell(ctx)
		}
	}
	return e.EventInterface.CreateWithEventNamespaceWithContext(ctx, event)
}

// begun are events that are not told yet, by the uid of their claim.
type begun struct {
	ctx  context.Context // the end of whoever tells
	mu   sync.Mutex
	held map[types.UID]heldEvent
}

type heldEvent struct {
	event *v1.Event
	to    typedcore.EventInterface
	timer *time.Timer
}

func (b *begun) hold(claim types.UID, event *v1.Event, to typedcore.EventInterface) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if was, there := b.held[claim]; there {
		was.timer.Stop()
	}
	b.held[claim] = heldEvent{event, to, time.AfterFunc(quickly, func() {
		if held, ok := b.take(claim); ok && b.ctx.Err() == nil {
			held.tell(b.ctx)
		}
	})}
}

func (b *begun) take(claim types.UID) (heldEvent, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	held, ok := b.held[claim]
	if ok {
		held.timer.Stop()
		delete(b.held, claim)
	}
	return held, ok
}

// tell writes it; one that cannot be written is not tried again, since what counts is told at the end.
func (h heldEvent) tell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, _ = h.to.CreateWithEventNamespaceWithContext(ctx, h.event)
}
