package why

import (
	"cmp"
	"context"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// nearLimit is how many names are suggested.
const nearLimit = 3

// Near names objects that may have been meant by a target that does not exist, the likeliest first, as arguments of
// `berth why` ("pvc/data", "-n shop pvc/data"): of nearly the same name, or of the same name in another namespace or
// of another kind. Where the API does not answer there are none.
func Near(ctx context.Context, client kubernetes.Interface, t Target) []string {
	type candidate struct {
		arg      string
		distance int
	}
	var found []candidate
	look := func(kind Kind, namespace, name string) {
		d, close := distance(t.Name, name), false
		switch same := kind == t.Kind && namespace == t.Namespace; {
		case same:
			close = d <= max(1, len(t.Name)/4) || len(t.Name) >= 3 && strings.Contains(name, t.Name)
		case kind == t.Kind || namespace == t.Namespace || kind == PV || t.Kind == PV:
			close, d = d == 0, 1
		}
		if close {
			arg := string(kind) + "/" + name
			if namespace != t.Namespace {
				arg = strings.TrimSpace(namespaceFlag(t, namespace) + " " + arg)
			}
			found = append(found, candidate{arg, d})
		}
	}
	if list, err := client.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{}); err == nil {
		for i := range list.Items {
			look(PVC, list.Items[i].Namespace, list.Items[i].Name)
		}
	}
	if list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{}); err == nil {
		for i := range list.Items {
			look(Pod, list.Items[i].Namespace, list.Items[i].Name)
		}
	}
	if list, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{}); err == nil {
		for i := range list.Items {
			look(PV, "", list.Items[i].Name)
		}
	}
	slices.SortFunc(found, func(a, b candidate) int { return cmp.Or(a.distance-b.distance, strings.Compare(a.arg, b.arg)) })
	var args []string
	for _, c := range found[:min(nearLimit, len(found))] {
		args = append(args, c.arg)
	}
	return args
}

// namespaceFlag leads from the namespace of the question to another.
func namespaceFlag(t Target, namespace string) string {
	if namespace == "" || t.Namespace == "" && namespace == metav1.NamespaceDefault {
		return ""
	}
	return "-n " + namespace
}

// distance counts the bytes to be added, dropped, replaced or swapped with their neighbour between two names.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			differ := 1
			if a[i] == b[j] {
				differ = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+differ)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
