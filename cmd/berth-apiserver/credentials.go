package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The files of the credentials' directory; every one is 0600.
const (
	caCert            = "ca.crt"
	caKey             = "ca.key"
	servingCert       = "serving.crt"
	servingKey        = "serving.key"
	adminCert         = "admin.crt"
	adminKey          = "admin.key"
	serviceAccountKey = "service-account.key"
)

// Validity that a jump of the machine's clock does not leave: a certificate that is not yet valid would shut the
// administrator out of a machine whose battery-backed clock died.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// credentials are the instance's own certificate authority, what it signed, and the service accounts' signing key.
type credentials struct {
	dir string
	pem map[string][]byte
}

func (c *credentials) path(name string) string { return filepath.Join(c.dir, name) }

// ensureCredentials reads what is in dir and makes what is missing. The authority and the service accounts' key are
// made once: kubeconfigs that were copied and tokens that were issued stay valid. The leaves are made anew at
// every start, so that they always name the address listened on.
func ensureCredentials(dir, host string) (*credentials, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c := &credentials{dir: dir, pem: map[string][]byte{}}
	if _, err := c.key(serviceAccountKey); err != nil {
		return nil, err
	}
	authorityKey, err := c.key(caKey)
	if err != nil {
		return nil, err
	}
	authority, err := c.authority(authorityKey)
	if err != nil {
		return nil, err
	}
	serving := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "berth-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: addresses(host),
	}
	admin := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "berth-admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := c.leaf(serving, servingCert, servingKey, authority, authorityKey); err != nil {
		return nil, err
	}
	return c, c.leaf(admin, adminCert, adminKey, authority, authorityKey)
}

// addresses are those by which a client may name the API.
func addresses(host string) []net.IP {
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 0, 0, 1)}
	ip := net.ParseIP(host)
	if !ip.IsUnspecified() {
		return append(ips, ip)
	}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			ips = append(ips, n.IP)
		}
	}
	return ips
}

// key reads the EC key called name, or makes it.
func (c *credentials) key(name string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(c.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return c.newKey(name)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key; restore it from a backup", c.path(name))
	}
	k, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the key %s: %w", c.path(name), err)
	}
	c.pem[name] = b
	return k, nil
}

func (c *credentials) newKey(name string) (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, err
	}
	return k, c.write(name, &pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// authority reads the certificate of the instance's authority, or signs it with its own key.
func (c *credentials) authority(key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	b, err := os.ReadFile(c.path(caCert))
	if err == nil {
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("%s holds no certificate; restore it from a backup", c.path(caCert))
		}
		c.pem[caCert] = b
		return x509.ParseCertificate(block.Bytes)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: "berth"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if err := c.sign(t, caCert, t, &key.PublicKey, key); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(c.pem[caCert])
	return x509.ParseCertificate(block.Bytes)
}

// leaf makes a key and its certificate.
func (c *credentials) leaf(t *x509.Certificate, cert, key string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	k, err := c.newKey(key)
	if err != nil {
		return err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	return c.sign(t, cert, ca, &k.PublicKey, caKey)
}

func (c *credentials) sign(t *x509.Certificate, name string, parent *x509.Certificate, pub *ecdsa.PublicKey, by *ecdsa.PrivateKey) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	t.SerialNumber, t.NotBefore, t.NotAfter = serial, notBefore, notAfter
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, by)
	if err != nil {
		return fmt.Errorf("sign %s: %w", name, err)
	}
	return c.write(name, &pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// write replaces a file of the directory as a whole, so that a kill leaves the old or the new one.
func (c *credentials) write(name string, block *pem.Block) error {
	c.pem[name] = pem.EncodeToMemory(block)
	return replaceFile(c.path(name), c.pem[name])
}

// replaceFile writes data to path, 0600, by rename.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
