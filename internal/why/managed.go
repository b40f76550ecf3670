package why

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/node/holder"
)

// write is what managed fields tell of a field: who wrote it, and when that manager wrote something of the same kind last. The
// manager is the name of a program as the API server takes it from the user agent: "kube-scheduler", "csi-provisioner", "kubelet".
type write struct {
	by string
	at time.Time
}

// wrote finds the last write of a field ("f:status", "f:attached"); nothing when managed fields do not have it. A manager's
// entry has one time for all its fields: the field is not younger than that, and may be older.
func wrote(o metav1.Object, path ...string) (w write) {
	for _, e := range o.GetManagedFields() {
		if e.FieldsV1 == nil || e.Time == nil || e.Time.Before(&metav1.Time{Time: w.at}) || !hasField(e.FieldsV1.GetRawBytes(), path) {
			continue
		}
		w = write{e.Manager, e.Time.Time}
	}
	return w
}

func hasField(raw []byte, path []string) bool {
	for _, name := range path {
		var fields map[string]json.RawMessage
		if json.Unmarshal(raw, &fields) != nil {
			return false
		}
		var ok bool
		if raw, ok = fields[name]; !ok {
			return false
		}
	}
	return true
}

// annotated is the write of an annotation.
func annotated(o metav1.Object, key string) write {
	return wrote(o, "f:metadata", "f:annotations", "f:"+key)
}

// held is the write of a finalizer, as part of the set: `v:"name"`.
func held(o metav1.Object, finalizer string) write {
	return wrote(o, "f:metadata", "f:finalizers", `v:"`+finalizer+`"`)
}

// name appends who wrote it to what is told of it.
func (w write) name(detail string) string {
	if w.by == "" {
		return detail
	}
	return strings.TrimSpace(detail + ", by " + w.by)
}

// waitingForContainers are the reasons of a container's status under which its volumes may still be missing.
var waitingForContainers = []string{"", "ContainerCreating", "PodInitializing"}

// volumesUp says that the pod has its volumes, whether or not its containers run: the kubelet makes the sandbox after the volumes are
// mounted, and containers after that. at is when that was known, as far as the API tells.
func volumesUp(f *facts) (up bool, at time.Time) {
	p := f.pod
	if p == nil {
		return false, time.Time{}
	}
	if isHolder(f.node) { // Ready is all that such a node has to say
		return holder.Ready(p)
	}
	up, _ = holder.Ready(p)
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == v1.PodReadyToStartContainers && c.Status == v1.ConditionTrue {
			up, at = true, c.LastTransitionTime.Time
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		w := c.State.Waiting
		if w == nil && (c.State.Running != nil || c.State.Terminated != nil) || w != nil && !slices.Contains(waitingForContainers, w.Reason) || c.LastTerminationState.Terminated != nil {
			up = true
		}
	}
	for i := range f.podEvents {
		if f.podEvents[i].Reason == "FailedCreatePodSandBox" {
			up = true
		}
	}
	return up, at
}
