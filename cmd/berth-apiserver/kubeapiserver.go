package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	logsapi "k8s.io/component-base/logs/api/v1"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func init() {
	// Two Kubernetes programs in one process both set up logging; the second is told that it is done.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
}

// readyWithin bounds the start of the API server; a cold start on a slow disk takes some 10 s.
const readyWithin = 2 * time.Minute

// serveAPI runs kube-apiserver until a signal ends it.
func serveAPI(o options, c *credentials) error {
	cmd := apiserver.NewAPIServerCommand()
	cmd.SetArgs([]string{
		"--etcd-servers=" + etcdEndpoint,
		"--bind-address=" + o.host,
		"--secure-port=" + strconv.Itoa(o.port),
		"--tls-cert-file=" + c.path(servingCert), "--tls-private-key-file=" + c.path(servingKey),
		"--client-ca-file=" + c.path(caCert),
		"--service-account-key-file=" + c.path(serviceAccountKey),
		"--service-account-signing-key-file=" + c.path(serviceAccountKey),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--authorization-mode=Node,RBAC",
		"--anonymous-auth=false",
		"--allow-privileged=true",
		"--service-cluster-ip-range=10.0.0.0/24",
		// No Service leads to this API, so nobody needs its endpoints.
		"--endpoint-reconciler-type=none",
		"--profiling=false",
		// It taints a new node as not ready, and the node lifecycle controller, which would take the taint away, does not
		// run here.
		"--disable-admission-plugins=TaintNodesByCondition",
		// One instance, few clients, all of them ours: fair queuing would only add to each request.
		"--enable-priority-and-fairness=false",
		"--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000",
		// A collection is deleted one object after the other by default, each waiting for etcd's commit.
		"--delete-collection-workers=16",
		// Without it a claim's dataSourceRef into another namespace is dropped without a word, and the volume is empty. With it
		// the reference is seen, and refused by a policy (internal/standalone/manifests/policies.yaml).
		"--feature-gates=CrossNamespaceVolumeDataSource=true",
		"--watch-cache-sizes=" + strings.Join(watchCacheSizes(), ","),
	})
	return cmd.Execute()
}

// waitReady returns when /readyz says ok. The API server has no event for it, hence the one poll of this program; it
// ends with the start.
func waitReady(ctx context.Context, c *credentials, host string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.pem[caCert])
	pair, err := tls.X509KeyPair(c.pem[adminCert], c.pem[adminKey])
	if err != nil {
		return err
	}
	cl := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}}
	defer cl.CloseIdleConnections()
	url := "https://" + net.JoinHostPort(reachable(host), strconv.Itoa(port)) + "/readyz"
	last := "no answer"
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := cl.Do(req); err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = fmt.Sprintf("%s: %s", resp.Status, body)
		} else {
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API was not ready within %s: %s", readyWithin, last)
		case <-tick.C:
		}
	}
}

// reachable is the address by which this machine reaches a listener on host.
func reachable(host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return host
}
