package intree

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/boundary"
)

const (
	// A token is replaced at 80 % of its lifetime, at the latest after a day (upstream's pkg/kubelet/token).
	maxTokenAge = 24 * time.Hour
	maxJitter   = 10 * time.Second
	// retryToken is the pause after a refusal to replace a token that is still good.
	retryToken = 30 * time.Second
)

// tokens asks for service account tokens and has each replaced in time, by one timer per token.
type tokens struct {
	client   kubernetes.Interface
	onChange func(podUID types.UID, volumeName string)

	mu      sync.Mutex
	issued  map[tokenKey]*token
	stopped bool
}

type tokenKey struct {
	pod      types.UID
	volume   string
	audience string
	path     string
}

type token struct {
	value            string
	renewal, expires time.Time
	lifetime         time.Duration
	timer            *time.Timer
}

func newTokens(client kubernetes.Interface, onChange func(types.UID, string)) *tokens {
	return &tokens{client: client, onChange: onChange, issued: map[tokenKey]*token{}}
}

// get returns a token bound to the pod: the one that was issued before, or a new one when its time has come. A
// refusal keeps the old one as long as it is good.
func (t *tokens) get(ctx context.Context, pod *v1.Pod, volume string, p *v1.ServiceAccountTokenProjection) (string, error) {
	key := tokenKey{pod.UID, volume, p.Audience, p.Path}
	now := time.Now()
	t.mu.Lock()
	old := t.issued[key]
	t.mu.Unlock()
	if old != nil && now.Before(old.renewal) {
		return old.value, nil
	}
	fresh, err := t.request(ctx, pod, p)
	switch {
	case err == nil:
		// Not at once, even when the clocks of this node and of the API differ.
		t.keep(key, fresh, max(time.Until(fresh.renewal), fresh.lifetime/10))
		return fresh.value, nil
	case old != nil && now.Before(old.expires):
		t.keep(key, old, retryToken)
		return old.value, nil
	}
	return "", fmt.Errorf("token of service account %q: %w", pod.Spec.ServiceAccountName, err)
}

func (t *tokens) request(ctx context.Context, pod *v1.Pod, p *v1.ServiceAccountTokenProjection) (*token, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: p.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if p.Audience != "" {
		request.Spec.Audiences = []string{p.Audience}
	}
	var answer *authenticationv1.TokenRequest
	err := boundary.Do("intree/request-token", func() (err error) {
		answer, err = t.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	lifetime := time.Hour
	if s := answer.Spec.ExpirationSeconds; s != nil {
		lifetime = time.Duration(*s) * time.Second
	}
	expires := answer.Status.ExpirationTimestamp.Time
	return &token{
		value:    answer.Status.Token,
		expires:  expires,
		lifetime: lifetime,
		renewal:  renewal(expires.Add(-lifetime), lifetime, rand.N(min(maxJitter, lifetime/20))),
	}, nil
}

// renewal is when a token is to be replaced.
func renewal(issued time.Time, lifetime, jitter time.Duration) time.Time {
	return issued.Add(min(lifetime*8/10, maxTokenAge) - jitter)
}

// keep stores the token and asks for a new publish after the delay.
func (t *tokens) keep(key tokenKey, tok *token, after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.issued[key]; old != nil && old.timer != nil {
		old.timer.Stop()
	}
	if t.stopped {
		return
	}
	t.issued[key] = tok
	tok.timer = time.AfterFunc(after, func() { t.onChange(key.pod, key.volume) })
}

func (t *tokens) releasePod(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, tok := range t.issued {
		if key.pod == uid {
			tok.timer.Stop()
			delete(t.issued, key)
		}
	}
}

func (t *tokens) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	for key, tok := range t.issued {
		tok.timer.Stop()
		delete(t.issued, key)
	}
}
