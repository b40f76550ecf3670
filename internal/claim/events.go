package claim

import (
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"berth.io/berth/internal/trace"
)

// Reasons of the events, spelled as upstream's (pkg/controller/volume/events and the literals in pv_controller.go).
const (
	reasonFailedBinding              = "FailedBinding"
	reasonVolumeMismatch             = "VolumeMismatch"
	reasonVolumeFailedRecycle        = "VolumeFailedRecycle"
	reasonVolumeRecycled             = "VolumeRecycled"
	reasonRecyclerPod                = "RecyclerPod"
	reasonVolumeDelete               = "VolumeDelete"
	reasonVolumeFailedDelete         = "VolumeFailedDelete"
	reasonVolumeUnknownReclaimPolicy = "VolumeUnknownReclaimPolicy"
	reasonExternalProvisioning       = "ExternalProvisioning"
	reasonProvisioningFailed         = "ProvisioningFailed"
	reasonProvisioningCleanupFailed  = "ProvisioningCleanupFailed"
	reasonProvisioningSucceeded      = "ProvisioningSucceeded"
	reasonWaitForFirstConsumer       = "WaitForFirstConsumer"
	reasonWaitForPodScheduled        = "WaitForPodScheduled"
	reasonClaimLost                  = "ClaimLost"
	reasonClaimMisbound              = "ClaimMisbound"
	reasonExternalExpanding          = "ExternalExpanding"
	reasonVolumeResizeFailed         = "VolumeResizeFailed"
)

func warning(reason, message string) *notice { return &notice{v1.EventTypeWarning, reason, message} }
func normal(reason, message string) *notice  { return &notice{v1.EventTypeNormal, reason, message} }

// said remembers the last thing told about an object, so that a sync that changes nothing tells nothing: neither an
// event (each is a write) nor a line in the journey. The slow resync forgets it on purpose, so that the event of a
// claim that still waits is repeated, folded by the recorder, before it expires.
type said struct {
	mu   sync.Mutex
	last map[string]string
}

func newSaid() *said { return &said{last: map[string]string{}} }

// again says whether what was told about key last is the same.
func (s *said) again(key, what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last[key] == what {
		return true
	}
	s.last[key] = what
	return false
}

func (s *said) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, key)
}

func (s *said) forgetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.last)
}

// event sends n about o; the recorder does it in the background.
func (c *Controller) event(o runtime.Object, n *notice) {
	if c.opts.Events != nil && n != nil {
		c.opts.Events.Event(o, n.eventType, n.reason, n.message)
	}
}

// waits tells why a claim cannot go on, once per reason: an event for the user, a step of the journey.
func (c *Controller) waits(claim *v1.PersistentVolumeClaim, step trace.Step, why string, n *notice) {
	key := keyOf(claim)
	if n != nil && !c.told.again(key, n.reason+n.message) {
		c.event(claim, n)
	}
	if why != "" && !c.noted.again(key, string(step)+why) {
		c.opts.Trace.Record(trace.Entry{Step: step, State: trace.Waiting, Detail: why, Claim: trace.Claim(claim)})
	}
}
