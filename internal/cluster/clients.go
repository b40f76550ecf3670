package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"

	"berth.io/berth/internal/apiclient"
)

// API says how the cluster's API is reached; names are the sidecars'.
type API struct {
	Kubeconfig string // empty: the pod's service account
	// QPS and Burst of all clients together; 0: by the workers.
	QPS   float32
	Burst int
}

const (
	// callsPerWorker is how many requests one worker makes in a second when every answer of API and driver takes some 10 ms, with
	// some five requests to each volume: no worker waits for the limit, and the API server's own fairness has the last word.
	callsPerWorker = 20
	// leastQPS for whoever has few workers.
	leastQPS = 50
)

func (a *API) validate() error {
	if a.QPS < 0 {
		return fmt.Errorf("--kube-api-qps %g: want a number above zero", a.QPS)
	}
	if a.Burst < 0 {
		return fmt.Errorf("--kube-api-burst %d: want a number above zero", a.Burst)
	}
	if a.QPS > 0 && a.Burst > 0 && float32(a.Burst) < a.QPS {
		return fmt.Errorf("--kube-api-burst %d is less than --kube-api-qps %g", a.Burst, a.QPS)
	}
	return nil
}

// limits are QPS and burst for so many workers.
func (a *API) limits(workers int) (float32, int) {
	qps, burst := a.QPS, a.Burst
	if qps == 0 {
		qps = max(leastQPS, float32(callsPerWorker*workers))
	}
	if burst == 0 {
		burst = int(2 * qps)
	}
	return qps, burst
}

// config reaches the cluster. All clients that are made of copies share one limit; their informers stay close to a server that goes away.
func (a *API) config(workers int, agent string, log *slog.Logger) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if a.Kubeconfig != "" {
		if c, err = clientcmd.BuildConfigFromFlags("", a.Kubeconfig); err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
	} else if c, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set): give --kubeconfig")
	} else if err != nil {
		return nil, fmt.Errorf("the pod's service account: %w", err)
	}
	qps, burst := a.limits(workers)
	c.QPS, c.Burst = qps, burst
	c.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(qps, burst)
	c.UserAgent = agent
	c.Wrap(apiclient.NewReach(log).Wrap)
	return c, nil
}

// aside is a copy of c with a limit of its own: what it is for never waits behind the volumes' requests.
func aside(c *rest.Config, qps float32, timeout time.Duration) *rest.Config {
	c = apiclient.Protobuf(c)
	c.QPS, c.Burst, c.RateLimiter = qps, int(2*qps), nil
	c.Timeout = timeout
	return c
}

// wrapped is a copy of c whose requests go through more.
func wrapped(c *rest.Config, through ...func(http.RoundTripper) http.RoundTripper) *rest.Config {
	c = rest.CopyConfig(c)
	for _, w := range through {
		c.Wrap(w)
	}
	return c
}

// podNamespace is where this process runs, as csi-lib-utils finds it.
func podNamespace() (string, error) {
	const file = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	name := os.Getenv("POD_NAMESPACE")
	if name == "" {
		if b, err := os.ReadFile(file); err == nil {
			name = strings.TrimSpace(string(b))
		}
	}
	if name == "" {
		return "default", nil
	}
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return "", fmt.Errorf("POD_NAMESPACE %q: %s", name, strings.Join(problems, "; "))
	}
	return name, nil
}
