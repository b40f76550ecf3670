package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/apiserver"
)

// nodeName is the one node, an object without a kubelet: nothing that is measured here needs one.
const nodeName = "bench"

// cluster is a private Kubernetes API with upstream's controllers, those of volumes among them, in the process of the API server:
// berth-apiserver --controllers=upstream, whose kube-controller-manager runs with --kube-api-qps=500.
type cluster struct {
	bin, dir   string
	kubeconfig string
	listen     string
	api        *apiserver.Process
	config     *rest.Config
	client     kubernetes.Interface
	dynamic    dynamic.Interface
	processes  []*process
}

func newCluster(ctx context.Context, bin string) (*cluster, error) {
	dir, err := os.MkdirTemp("", "bbk-") // short: a unix socket's path has 107 characters
	if err != nil {
		return nil, err
	}
	c := &cluster{bin: bin, dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return c, err
	}
	c.listen = l.Addr().String()
	l.Close()
	if err := c.serve(ctx, "upstream"); err != nil {
		return c, err
	}
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.kubeconfig); err != nil {
		return c, err
	}
	c.config.QPS = -1
	if c.client, err = kubernetes.NewForConfig(apiclient.Protobuf(c.config)); err != nil {
		return c, err
	}
	c.dynamic, err = dynamic.NewForConfig(c.config)
	return c, err
}

// serve starts the API server, with upstream's volume controllers or without any ("berth"); one that runs is stopped before.
func (c *cluster) serve(ctx context.Context, controllers string) (err error) {
	if c.api != nil {
		c.api.Stop()
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "api.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	c.api, err = apiserver.Start(ctx, apiserver.Options{
		Binary: filepath.Join(c.bin, apiserver.Program), Dir: filepath.Join(c.dir, "api"), Listen: c.listen, Kubeconfig: c.kubeconfig,
		Controllers: controllers, Log: log,
	})
	return err
}

// remove stops everything, the last first, and removes the directory.
func (c *cluster) remove() {
	if c == nil {
		return
	}
	for i := len(c.processes) - 1; i >= 0; i-- {
		c.processes[i].stop()
	}
	if c.api != nil {
		c.api.Stop()
	}
	os.RemoveAll(c.dir)
}

// spawn starts a program whose end is the cluster's concern.
func (c *cluster) spawn(name, program string, args ...string) (*process, error) {
	return c.keep(spawn(c.dir, name, false, program, args...))
}

// spawnApart is spawn for one that mounts.
func (c *cluster) spawnApart(name, program string, args ...string) (*process, error) {
	return c.keep(spawn(c.dir, name, true, program, args...))
}

func (c *cluster) keep(p *process, err error) (*process, error) {
	if err == nil {
		c.processes = append(c.processes, p)
	}
	return p, err
}

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// define creates the CustomResourceDefinitions among the documents of files, and waits until the API serves them.
func (c *cluster) define(ctx context.Context, files ...string) error {
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var u unstructured.Unstructured
			if err := dec.Decode(&u.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if u.GetKind() != "CustomResourceDefinition" {
				continue
			}
			_, err := c.dynamic.Resource(definitions).Create(ctx, &u, metav1.CreateOptions{})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("%s: %w", file, err)
			}
			names = append(names, u.GetName())
		}
	}
	for _, name := range names {
		if err := c.established(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) established(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		u, err := c.dynamic.Resource(definitions).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("definition %s: %w", name, err)
		}
		conditions, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
		if err != nil {
			return fmt.Errorf("definition %s: %w", name, err)
		}
		for _, one := range conditions {
			if m, ok := one.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("definition %s is not established: %w", name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// node makes the node's objects, which a kubelet makes elsewhere: drivers with their topology keys in CSINode, the labels in Node.
func (c *cluster) node(ctx context.Context, labels map[string]string, drivers []storagev1.CSINodeDriver) error {
	_, err := c.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = c.client.StorageV1().CSINodes().Create(ctx, &storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: storagev1.CSINodeSpec{Drivers: drivers},
	}, metav1.CreateOptions{})
	return err
}

// driver announces a driver to the cluster, with a class of its name that binds at once.
func (c *cluster) driver(ctx context.Context, name string, attach bool) error {
	_, err := c.client.StorageV1().CSIDrivers().Create(ctx, &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSIDriverSpec{AttachRequired: &attach},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = c.client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: name,
	}, metav1.CreateOptions{})
	return err
}
