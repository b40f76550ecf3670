package kubectlberth

import (
	"context"
	"errors"
	"fmt"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/why"
)

// connection is how the cluster is reached: kubectl's files, environment and flags.
type connection struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides *clientcmd.ConfigOverrides
	version   string
}

func newConnection(version string) *connection {
	return &connection{rules: clientcmd.NewDefaultClientConfigLoadingRules(), overrides: &clientcmd.ConfigOverrides{}, version: version}
}

// addFlags adds kubectl's flags of the same names, from client-go alone: those of cli-runtime bring kustomize with them.
func (c *connection) addFlags(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&c.rules.ExplicitPath, "kubeconfig", "", "Path to the kubeconfig file to use for CLI requests.")
	clientcmd.BindOverrideFlags(c.overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
}

func (c *connection) config() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(c.rules, c.overrides)
}

// namespace is --namespace, else the context's, else default.
func (c *connection) namespace() (string, error) {
	namespace, _, err := c.config().Namespace()
	if clientcmd.IsEmptyConfig(err) { // what is wrong with the command line is told first
		return metav1.NamespaceDefault, nil
	}
	return namespace, err
}

// sources are the clients of a question, or of several at once.
func (c *connection) sources(ctx context.Context, several bool) (why.Sources, error) {
	cfg, err := c.config().ClientConfig()
	if clientcmd.IsEmptyConfig(err) || errors.Is(err, rest.ErrNotInCluster) {
		return why.Sources{}, errors.New("no cluster is configured: set KUBECONFIG, or say --kubeconfig FILE")
	}
	if err != nil {
		return why.Sources{}, fmt.Errorf("kubeconfig: %w", err)
	}
	cfg.UserAgent = "kubectl-berth/" + c.version
	cfg.QPS, cfg.Burst = 50, 300 // as kubectl; a question is some twenty requests
	builtIn := rest.CopyConfig(cfg)
	builtIn.ContentType, builtIn.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(builtIn)
	if err != nil {
		return why.Sources{}, err
	}
	snapshots, err := snapclient.NewForConfig(cfg)
	if err != nil {
		return why.Sources{}, err
	}
	ours, err := objects.NewClient(cfg)
	if err != nil {
		return why.Sources{}, err
	}
	return why.Sources{Client: client, Snapshots: snapshots, Schedules: func(namespace string) why.ScheduleReader { return ours.Schedules(namespace) },
		Problem: blockProblems(ctx, ours, several), Program: why.KubectlProgram}, nil
}
