package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// completeWithin bounds what a press of the tab key may take.
const completeWithin = 2 * time.Second

func namespaceFlag(c *cobra.Command, namespace *string) {
	c.Flags().StringVarP(namespace, "namespace", "n", metav1.NamespaceDefault, "namespace of the pod or claim")
}

// completePods offers the names of the pods.
func (g *global) completePods(namespace *string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return g.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
			list, err := client.CoreV1().Pods(*namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil
			}
			for _, p := range list.Items {
				names = append(names, p.Name)
			}
			return names
		})
	}
}

// completeTargets offers pvc/NAME, pod/NAME and pv/NAME.
func (g *global) completeTargets(namespace *string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return g.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
			if list, err := client.CoreV1().PersistentVolumeClaims(*namespace).List(ctx, metav1.ListOptions{}); err == nil {
				for _, o := range list.Items {
					names = append(names, "pvc/"+o.Name)
				}
			}
			if list, err := client.CoreV1().Pods(*namespace).List(ctx, metav1.ListOptions{}); err == nil {
				for _, o := range list.Items {
					names = append(names, "pod/"+o.Name)
				}
			}
			if list, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{}); err == nil {
				for _, o := range list.Items {
					names = append(names, "pv/"+o.Name)
				}
			}
			return names
		})
	}
}

func (g *global) names(c *cobra.Command, list func(context.Context, kubernetes.Interface) []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
	defer cancel()
	client, err := g.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return list(ctx, client), cobra.ShellCompDirectiveNoFileComp
}
