package main

import (
	"net"
	"strconv"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// writeKubeconfig writes the administrator's kubeconfig, 0600, with everything embedded: the one file is enough.
func (c *credentials) writeKubeconfig(path, host string, port int) error {
	const name = "berth"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{
		Server:                   "https://" + net.JoinHostPort(reachable(host), strconv.Itoa(port)),
		CertificateAuthorityData: c.pem[caCert],
	}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: c.pem[adminCert], ClientKeyData: c.pem[adminKey]}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	data, err := clientcmd.Write(*cfg)
	if err != nil {
		return err
	}
	return replaceFile(path, data)
}
