package why

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/node/holder"
)

var ofSet = regexp.MustCompile(`^(.+)-(\d+)$`)

// setHint says why a StatefulSet has not made the pod, or the claim of the pod, that is asked about; empty when no set would make it,
// or it may not be read.
func setHint(ctx context.Context, client kubernetes.Interface, t Target) string {
	m := ofSet.FindStringSubmatch(t.Name)
	if m == nil || t.Namespace == "" || t.Kind != Pod && t.Kind != PVC {
		return ""
	}
	sets, err := client.AppsV1().StatefulSets(t.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return ""
	}
	ordinal, err := strconv.Atoi(m[2])
	if err != nil {
		return ""
	}
	for i := range sets.Items {
		if s := &sets.Items[i]; makes(s, t.Kind, m[1]) {
			return notMade(ctx, client, s, ordinal)
		}
	}
	return ""
}

// makes says whether the set makes pods, or claims, that are called so before their number.
func makes(s *appsv1.StatefulSet, kind Kind, name string) bool {
	if kind == Pod {
		return s.Name == name
	}
	for i := range s.Spec.VolumeClaimTemplates {
		if s.Spec.VolumeClaimTemplates[i].Name+"-"+s.Name == name {
			return true
		}
	}
	return false
}

func notMade(ctx context.Context, client kubernetes.Interface, s *appsv1.StatefulSet, ordinal int) string {
	first := 0
	if s.Spec.Ordinals != nil {
		first = int(s.Spec.Ordinals.Start)
	}
	replicas := int(ptr.Deref(s.Spec.Replicas, 1))
	switch last := first + replicas - 1; {
	case replicas == 0:
		return fmt.Sprintf("StatefulSet %s has no replicas", s.Name)
	case ordinal < first || ordinal > last:
		return fmt.Sprintf("StatefulSet %s has %d replicas: its pods are %s-%d to %s-%d", s.Name, replicas, s.Name, first, s.Name, last)
	case s.Spec.PodManagementPolicy == appsv1.ParallelPodManagement:
		return ""
	}
	for n := first; n < ordinal; n++ {
		name := fmt.Sprintf("%s-%d", s.Name, n)
		p, err := client.CoreV1().Pods(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return ""
		}
		if ready, _ := holder.Ready(p); !ready {
			return fmt.Sprintf("StatefulSet %s starts its pods one after the other, and %s is not Ready: ask about pod/%s", s.Name, name, name)
		}
	}
	return ""
}
