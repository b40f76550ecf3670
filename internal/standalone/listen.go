package standalone

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// defaultPort is kube-apiserver's own.
const defaultPort = 6443

// chooseListen returns the address for the API. An address that was asked for is taken or refused. Otherwise it is the
// one of the last start, so that copied kubeconfigs stay valid, or the first free port from defaultPort on: several
// instances run side by side without a flag. No other instance chooses the address until release.
func chooseListen(asked, kubeconfig string) (addr string, release func(), err error) {
	if asked != "" {
		if err := validListen(asked); err != nil {
			return "", nil, err
		}
		release, err = awaitFree(asked)
		return asked, release, err
	}
	if last := lastListen(kubeconfig); last != "" {
		if release, err = awaitFree(last); err != nil {
			return "", nil, fmt.Errorf("%w (the address of the last start; give another with --listen)", err)
		}
		return last, release, nil
	}
	for port := defaultPort; port < defaultPort+100; port++ {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if release, err := reserve(addr); err == nil {
			return addr, release, nil
		}
	}
	return "", nil, fmt.Errorf("no free port on 127.0.0.1 between %d and %d; give one with --listen", defaultPort, defaultPort+99)
}

// validListen refuses what is no ADDR:PORT; nothing given is fine.
func validListen(asked string) error {
	if asked == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(asked)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || net.ParseIP(host) == nil {
		return fmt.Errorf("--listen %q is not ADDR:PORT with an IP address", asked)
	}
	return nil
}

// letGo is how long a port may still be held by an API server that has just been killed.
const letGo = time.Second

func awaitFree(addr string) (release func(), err error) {
	release, err = reserve(addr)
	for deadline := time.Now().Add(letGo); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		release, err = reserve(addr)
	}
	return release, err
}

// reserve keeps a free port from other instances while this one's API server is on its way to listen there, which takes seconds. The
// reservation is a name that is no file: it goes with the process, and exists once in each network namespace, as the port does.
func reserve(addr string) (release func(), err error) {
	held, err := net.Listen("unix", "@berth-api-"+addr)
	if err != nil {
		return nil, fmt.Errorf("the API cannot listen on %s, which another instance has chosen: %w", addr, err)
	}
	l, err := net.Listen("tcp", addr)
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		held.Close()
		return nil, fmt.Errorf("the API cannot listen on %s: %w", addr, err)
	}
	return func() { held.Close() }, nil
}

// lastListen reads the address back from the kubeconfig of the last start; empty when there is none.
func lastListen(kubeconfig string) string {
	cfg, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return ""
	}
	for _, c := range cfg.Clusters {
		if u, err := url.Parse(c.Server); err == nil && u.Port() != "" && net.ParseIP(u.Hostname()) != nil {
			return u.Host
		}
	}
	return ""
}
