package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// The authority and the service accounts' key are made once; the leaves at every start.
func TestCredentialsOutliveAStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first, err := ensureCredentials(dir, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := ensureCredentials(dir, "0.0.0.0")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{caCert, caKey, serviceAccountKey} {
		if !bytes.Equal(first.pem[name], second.pem[name]) {
			t.Errorf("%s was made anew: copied kubeconfigs and issued tokens would end", name)
		}
	}
	if bytes.Equal(first.pem[servingCert], second.pem[servingCert]) {
		t.Error("the serving certificate does not follow --listen")
	}
	for _, name := range []string{caKey, servingKey, adminKey, serviceAccountKey} {
		if fi, err := os.Stat(first.path(name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", name, fi.Mode(), err)
		}
	}
}

// A clock that jumped by years must not lock the owner out.
func TestCertificatesHoldWhenTheClockJumps(t *testing.T) {
	c, err := ensureCredentials(filepath.Join(t.TempDir(), "pki"), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.pem[caCert])
	block, _ := pem.Decode(c.pem[servingCert])
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, year := range []int{2021, 2026, 2119} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "localhost", CurrentTime: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}); err != nil {
			t.Errorf("in %d: %v", year, err)
		}
	}
}

func TestDamagedCredentialsAreNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := ensureCredentials(dir, "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, caKey), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ensureCredentials(dir, "127.0.0.1"); err == nil {
		t.Error("a damaged authority was replaced or used")
	}
}

// The one file is enough, and nobody else can read it.
func TestKubeconfigIsPrivateAndComplete(t *testing.T) {
	c, err := ensureCredentials(filepath.Join(t.TempDir(), "pki"), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.writeKubeconfig(path, "0.0.0.0", 6443); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != "https://127.0.0.1:6443" || len(cfg.CAData) == 0 || len(cfg.CertData) == 0 || len(cfg.KeyData) == 0 {
		t.Errorf("host %q, %d/%d/%d bytes of credentials", cfg.Host, len(cfg.CAData), len(cfg.CertData), len(cfg.KeyData))
	}
}
