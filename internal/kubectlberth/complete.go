package kubectlberth

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/why"
)

// completeWithin bounds what a press of the tab key may take; completeAtMost, how many names of a kind are offered.
const (
	completeWithin = 2 * time.Second
	completeAtMost = 500
)

func (c *connection) completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.names(cmd, func(ctx context.Context, s why.Sources, _ string) (names []string) {
		if list, err := s.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{Limit: completeAtMost}); err == nil {
			for i := range list.Items {
				names = append(names, list.Items[i].Name)
			}
		}
		return names
	})
}

func (c *connection) completeContexts(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	raw, err := c.config().RawConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for name := range raw.Contexts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeTargets offers what can be asked about (why.Say); after a kind alone, its names.
func (c *connection) completeTargets(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	only := why.Kind("")
	if len(args) > 0 && !strings.Contains(args[0], "/") {
		t, err := why.ParseTarget("", args[0]+"/x")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		only = t.Kind
	}
	return c.names(cmd, func(ctx context.Context, s why.Sources, namespace string) (names []string) {
		offer := func(kind why.Kind, name string) {
			word := string(kind) + "/" + name
			if only != "" {
				word = name
			}
			if (only == "" || only == kind) && strings.HasPrefix(word, begun) && !slices.Contains(args, word) {
				names = append(names, word)
			}
		}
		options := metav1.ListOptions{Limit: completeAtMost}
		if list, err := s.Client.CoreV1().PersistentVolumeClaims(namespace).List(ctx, options); err == nil {
			for i := range list.Items {
				offer(why.PVC, list.Items[i].Name)
			}
		}
		if list, err := s.Client.CoreV1().Pods(namespace).List(ctx, options); err == nil {
			for i := range list.Items {
				offer(why.Pod, list.Items[i].Name)
			}
		}
		if list, err := s.Client.CoreV1().PersistentVolumes().List(ctx, options); err == nil {
			for i := range list.Items {
				offer(why.PV, list.Items[i].Name)
			}
		}
		if list, err := s.Snapshots.SnapshotV1().VolumeSnapshots(namespace).List(ctx, options); err == nil {
			for i := range list.Items {
				offer(why.Snapshot, list.Items[i].Name)
			}
		}
		if list, err := s.Snapshots.GroupsnapshotV1().VolumeGroupSnapshots(namespace).List(ctx, options); err == nil {
			for i := range list.Items {
				offer(why.Group, list.Items[i].Name)
			}
		}
		if list, err := s.Schedules(namespace).List(ctx, options); err == nil {
			for i := range list.Items {
				offer(why.Schedule, list.Items[i].Name)
			}
		}
		return names
	})
}

func (c *connection) names(cmd *cobra.Command, list func(context.Context, why.Sources, string) []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	namespace, err := c.namespace()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := c.sources(ctx, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return list(ctx, s, namespace), cobra.ShellCompDirectiveNoFileComp
}
