package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

// tokensAttribute carries the pod's service account tokens, a JSON object by audience.
const tokensAttribute = "csi.storage.k8s.io/serviceAccount.tokens"

// tokenCache keeps tokens until four fifths of their life have passed (upstream's token manager): drivers with
// requiresRepublish would ask the API for new ones all the time.
type tokenCache struct {
	mu     sync.Mutex
	tokens map[tokenKey]cachedToken
}

type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

type cachedToken struct {
	status  authenticationv1.TokenRequestStatus
	renewAt time.Time
}

func (c *tokenCache) get(k tokenKey) (authenticationv1.TokenRequestStatus, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.tokens[k]
	return t.status, ok && time.Now().Before(t.renewAt)
}

func (c *tokenCache) put(k tokenKey, s authenticationv1.TokenRequestStatus) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tokens == nil {
		c.tokens = map[tokenKey]cachedToken{}
	}
	c.tokens[k] = cachedToken{status: s, renewAt: now.Add(s.ExpirationTimestamp.Sub(now) * 4 / 5)}
}

func (c *tokenCache) forget(pod types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.tokens {
		if k.pod == pod {
			delete(c.tokens, k)
		}
	}
}

// serviceAccountTokens asks for the tokens that the driver's CSIDriver object wants, each bound to the pod.
func (p *Plugin) serviceAccountTokens(ctx context.Context, object *storagev1.CSIDriver, pod *v1.Pod) (map[string]string, error) {
	if object == nil || len(object.Spec.TokenRequests) == 0 {
		return nil, nil
	}
	byAudience := map[string]authenticationv1.TokenRequestStatus{}
	for _, want := range object.Spec.TokenRequests {
		key := tokenKey{pod: pod.UID, audience: want.Audience}
		if want.ExpirationSeconds != nil {
			key.seconds = *want.ExpirationSeconds
		}
		status, ok := p.tokens.get(key)
		if !ok {
			var err error
			if status, err = p.requestToken(ctx, pod, want); err != nil {
				return nil, fmt.Errorf("get a token of service account %s/%s for driver %s: %w",
					pod.Namespace, pod.Spec.ServiceAccountName, object.Name, err)
			}
			p.tokens.put(key, status)
		}
		byAudience[want.Audience] = status
	}
	data, err := json.Marshal(byAudience)
	if err != nil {
		return nil, fmt.Errorf("encode the tokens for driver %s: %w", object.Name, err)
	}
	return map[string]string{tokensAttribute: string(data)}, nil
}

func (p *Plugin) requestToken(ctx context.Context, pod *v1.Pod, want storagev1.TokenRequest) (authenticationv1.TokenRequestStatus, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: want.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if want.Audience != "" {
		request.Spec.Audiences = []string{want.Audience}
	}
	var made *authenticationv1.TokenRequest
	err := boundary.Do("csi/request-token", func() error {
		var err error
		made, err = p.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return authenticationv1.TokenRequestStatus{}, err
	}
	return made.Status, nil
}
