package standalone

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"path"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/boundary"
)

// The custom resource definitions of snapshots and group snapshots come unchanged from
// github.com/kubernetes-csi/external-snapshotter/client (see go generate below), the rest is ours.
//
//go:generate sh -c "cp $(go list -m -f '{{.Dir}}' github.com/kubernetes-csi/external-snapshotter/client/v8)/config/crd/*snapshot*.yaml manifests/ && chmod 644 manifests/*.yaml"
//go:generate sh -c "cp $(go list -m -f '{{.Dir}}' github.com/kubernetes-csi/external-snapshot-metadata/client)/config/crd/*.yaml manifests/ && chmod 644 manifests/*.yaml"
//go:embed manifests/*.yaml
var manifests embed.FS

// The ConfigMap that remembers what was installed, so that a second start writes nothing.
const (
	installedNamespace = metav1.NamespaceSystem
	installedName      = "berth-installed"
	installedHash      = "manifests"
	appliedPrefix      = "applied."
)

// bootstrap installs what an instance needs to have in its API. It is safe to be killed anywhere: the ConfigMap that
// says "installed" is written last.
func bootstrap(ctx context.Context, client kubernetes.Interface, a *applier, bare bool) (*corev1.ConfigMap, error) {
	names, err := manifests.ReadDir("manifests")
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	files := map[string][]byte{}
	for _, n := range names {
		if bare && !isDefinition(n.Name()) {
			continue
		}
		b, err := manifests.ReadFile(path.Join("manifests", n.Name()))
		if err != nil {
			return nil, err
		}
		files[n.Name()] = b
		sum.Write(b)
	}
	hash := hex.EncodeToString(sum.Sum(nil))
	cm, err := client.CoreV1().ConfigMaps(installedNamespace).Get(ctx, installedName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read what is installed: %w", err)
	}
	first := apierrors.IsNotFound(err)
	if !first && cm.Data[installedHash] == hash {
		if bare {
			return cm, nil
		}
		_, err := client.StorageV1().CSIDrivers().Get(ctx, blockDriver, metav1.GetOptions{})
		if err == nil {
			return cm, nil
		}
		// A class is the user's to delete; without the driver's object it would be attached and mounted by other rules.
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read what is installed: %w", err)
		}
	}
	if err := install(ctx, a, files, first); err != nil {
		return nil, err
	}
	if first {
		cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: installedNamespace, Name: installedName}}
	}
	return remember(ctx, client, cm, installedHash, hash)
}

// install applies the definitions first, then what uses them; the API serves what is defined when it returns.
func install(ctx context.Context, a *applier, files map[string][]byte, first bool) error {
	order := make([]string, 0, len(files))
	for n := range files {
		order = append(order, n)
	}
	sort.Slice(order, func(i, k int) bool {
		if ci, ck := isDefinition(order[i]), isDefinition(order[k]); ci != ck {
			return ci
		}
		return order[i] < order[k]
	})
	var definitions []*unstructured.Unstructured
	served := func() error {
		for _, d := range definitions {
			if err := a.established(ctx, d); err != nil {
				return err
			}
		}
		definitions = nil
		return nil
	}
	for _, n := range order {
		objects, err := parseManifests(n, files[n])
		if err != nil {
			return err
		}
		if !isDefinition(n) {
			if err := served(); err != nil {
				return err
			}
		}
		for _, u := range objects {
			if n == "classes.yaml" {
				if !first {
					continue
				}
				err = a.create(ctx, u)
			} else {
				_, err = a.apply(ctx, u)
			}
			if err != nil {
				return err
			}
			if isDefinition(n) {
				definitions = append(definitions, u)
			}
		}
	}
	return served() // a bare instance has nothing but definitions
}

// isDefinition goes by the name that controller-gen gives: GROUP_PLURAL.yaml.
func isDefinition(file string) bool { return strings.Contains(file, ".io_") }

// remember writes one key of the ConfigMap, making it when it has no resourceVersion yet.
func remember(ctx context.Context, client kubernetes.Interface, cm *corev1.ConfigMap, key, value string) (*corev1.ConfigMap, error) {
	cm = cm.DeepCopy()
	if cm.Data == nil {
		cm.Data = map[string]string{}
	}
	cm.Data[key] = value
	var out *corev1.ConfigMap
	err := boundary.Do("standalone/remember-installed", func() (err error) {
		if cm.ResourceVersion == "" {
			out, err = client.CoreV1().ConfigMaps(installedNamespace).Create(ctx, cm, metav1.CreateOptions{})
		} else {
			out, err = client.CoreV1().ConfigMaps(installedNamespace).Update(ctx, cm, metav1.UpdateOptions{})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("remember what is installed: %w", err)
	}
	return out, nil
}

// applyOnce applies the user's files, each content once in the life of the instance: what the user deletes
// afterwards stays deleted. before is called before each object.
func applyOnce(ctx context.Context, client kubernetes.Interface, a *applier, cm *corev1.ConfigMap, files []string, before func(context.Context, *unstructured.Unstructured)) ([]*unstructured.Unstructured, error) {
	var applied []*unstructured.Unstructured
	for _, f := range files {
		objects, data, err := readManifests(f)
		if err != nil {
			return applied, fmt.Errorf("--apply: %w", err)
		}
		sum := sha256.Sum256(data)
		key := appliedPrefix + hex.EncodeToString(sum[:8])
		if _, done := cm.Data[key]; done {
			continue
		}
		for _, u := range objects {
			before(ctx, u)
			out, err := a.apply(ctx, u)
			if err != nil {
				return applied, fmt.Errorf("--apply %s: %w", f, err)
			}
			applied = append(applied, out)
		}
		if cm, err = remember(ctx, client, cm, key, path.Base(f)); err != nil {
			return applied, err
		}
	}
	return applied, nil
}
