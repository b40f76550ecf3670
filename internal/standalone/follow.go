package standalone

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/trace"
)

// describe names objects as kubectl does.
func describe(objects []*unstructured.Unstructured) string {
	var names []string
	for _, u := range objects {
		names = append(names, strings.ToLower(u.GetKind())+"/"+u.GetName())
	}
	return strings.Join(names, ", ")
}

// follow prints the journey of the applied claims and pods, and where each pod's volumes are mounted; it returns when
// all of the pods have theirs.
func (in *instance) follow(ctx context.Context, applied []*unstructured.Unstructured) error {
	uids := map[types.UID]bool{}
	var pods []*unstructured.Unstructured
	for _, u := range applied {
		switch u.GetKind() {
		case "Pod":
			pods = append(pods, u)
			uids[u.GetUID()] = true
		case "PersistentVolumeClaim":
			uids[u.GetUID()] = true
		}
	}
	if len(pods) == 0 {
		return nil
	}
	j := &journeyPrinter{say: in.say, uids: uids, holding: true}
	end := in.rooms.journal.Follow(j.entry)
	defer end()
	past, err := trace.Read(in.dir.Journal(), trace.Filter{Since: in.say.began})
	if err != nil {
		in.log.Error("read the journal", "error", err)
	}
	j.release(past)
	for _, u := range pods {
		if err := in.untilMounted(ctx, u); err != nil {
			return ignoreCancelled(err)
		}
	}
	in.rooms.journal.Flush()
	return nil
}

// untilMounted prints the host paths of a pod's volumes when it is Ready.
func (in *instance) untilMounted(ctx context.Context, u *unstructured.Unstructured) error {
	w, err := in.client.CoreV1().Pods(u.GetNamespace()).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", u.GetName()).String()})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		pod, ok := e.Object.(*corev1.Pod)
		if !ok {
			continue
		}
		if ready, _ := holder.Ready(pod); !ready {
			continue
		}
		in.rooms.journal.Flush()
		in.say.line("pod %s/%s has its volumes:", pod.Namespace, pod.Name)
		for _, v := range in.rooms.mount.Status(pod.UID).Volumes {
			in.say.line("  %-28s %s", v.Name, v.Path)
		}
		return nil
	}
	return ctx.Err()
}

// journeyPrinter prints each step of some claims and pods once.
type journeyPrinter struct {
	say  progress
	uids map[types.UID]bool

	mu   sync.Mutex
	seen map[string]bool
	// While the past is read, what happens is held back, so that all is printed in its order.
	holding bool
	held    []trace.Entry
}

// release prints the past with what was held back, and from now on each entry as it comes.
func (j *journeyPrinter) release(past []trace.Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := append(past, j.held...)
	j.holding, j.held = false, nil
	slices.SortStableFunc(all, func(a, b trace.Entry) int { return a.Time.Compare(b.Time) })
	for _, e := range all {
		j.print(e)
	}
}

func (j *journeyPrinter) entry(e trace.Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.holding {
		j.held = append(j.held, e)
		return
	}
	j.print(e)
}

func (j *journeyPrinter) print(e trace.Entry) {
	if e.State == trace.Began || !j.uids[e.Claim.UID] && !j.uids[e.Pod.UID] {
		return
	}
	key := fmt.Sprint(e.Time.UnixNano(), e.Step, e.State, e.Detail)
	if j.seen[key] {
		return
	}
	if j.seen == nil {
		j.seen = map[string]bool{}
	}
	j.seen[key] = true
	what := string(e.Step)
	if e.State != trace.Done {
		what += " (" + strings.ToLower(string(e.State)) + ")"
	}
	j.say.at(e.Time, "  %-22s %s", what, e.Detail)
}
