package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/why"
)

// completeWithin bounds what a press of the tab key may take.
const completeWithin = 2 * time.Second

func (g *global) namespaceFlag(c *cobra.Command, namespace *string, of string) {
	c.Flags().StringVarP(namespace, "namespace", "n", metav1.NamespaceDefault, "namespace of "+of)
	_ = c.RegisterFlagCompletionFunc("namespace", g.completeNamespaces)
}

// completeNamespaces offers the names of the namespaces.
func (g *global) completeNamespaces(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return g.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
		list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for _, o := range list.Items {
			names = append(names, o.Name)
		}
		return names
	})
}

// completeContainers offers the containers of the pod that the command line names.
func (g *global) completeContainers(namespace *string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return g.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
			pod, err := client.CoreV1().Pods(*namespace).Get(ctx, podName(args[0]), metav1.GetOptions{})
			if err != nil {
				return nil
			}
			for _, o := range pod.Spec.Containers {
				names = append(names, o.Name)
			}
			return names
		})
	}
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

// completeTargets offers what can be asked about (why.Say), and after a kind alone the names.
func (g *global) completeTargets(namespace *string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if len(args) == 1 {
			kind, err := why.ParseTarget(*namespace, args[0]+"/x")
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			all, directive := g.completeTargets(namespace)(c, nil, "")
			var names []cobra.Completion
			for _, target := range all {
				if name, ok := strings.CutPrefix(target, string(kind.Kind)+"/"); ok {
					names = append(names, name)
				}
			}
			return names, directive
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
			if snapshots, schedules, err := g.snapshots(); err == nil {
				if list, err := snapshots.SnapshotV1().VolumeSnapshots(*namespace).List(ctx, metav1.ListOptions{}); err == nil {
					for i := range list.Items {
						names = append(names, string(why.Snapshot)+"/"+list.Items[i].Name)
					}
				}
				if list, err := snapshots.GroupsnapshotV1().VolumeGroupSnapshots(*namespace).List(ctx, metav1.ListOptions{}); err == nil {
					for i := range list.Items {
						names = append(names, string(why.Group)+"/"+list.Items[i].Name)
					}
				}
				if list, err := schedules(*namespace).List(ctx, metav1.ListOptions{}); err == nil {
					for i := range list.Items {
						names = append(names, string(why.Schedule)+"/"+list.Items[i].Name)
					}
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
