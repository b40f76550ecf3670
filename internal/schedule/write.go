package schedule

import (
	"context"
	"encoding/json"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// write runs one call to the API server beside the scheduler's goroutine; then runs on it with the call's error.
func (s *Scheduler) write(call func(context.Context) error, then func(error)) {
	s.work.Go(func() {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-s.running.Done():
			return
		}
		ctx, cancel := context.WithTimeout(s.running, writeTimeout)
		defer cancel()
		err := call(ctx)
		s.inbox.put(func() { then(err) })
	})
}

// patch is a JSON merge patch of an object's metadata and spec.
type patch struct {
	Metadata patchMetadata `json:"metadata"`
	Spec     any           `json:"spec,omitempty"`
	Status   any           `json:"status,omitempty"`
}

// patchMetadata: UID and ResourceVersion, when set, must be the object's own or the API server refuses the patch.
type patchMetadata struct {
	UID             types.UID         `json:"uid,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
}

func (p patch) bytes() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and API types only
	}
	return b
}

// writeVolume binds the volume to the claim that it was chosen for; the claim's side is the claim room's. The
// resourceVersion makes sure that nobody else has taken the volume.
func (s *Scheduler) writeVolume(p *pendingPod, pv *v1.PersistentVolume) {
	attempt, owner, node := p.attempt, p.pod.UID, p.decision.node
	body := patch{
		Metadata: patchMetadata{UID: pv.UID, ResourceVersion: pv.ResourceVersion},
		Spec:     map[string]any{"claimRef": pv.Spec.ClaimRef},
	}
	if v, ok := pv.Annotations[storagehelpers.AnnBoundByController]; ok {
		body.Metadata.Annotations = map[string]string{storagehelpers.AnnBoundByController: v}
	}
	var answer *v1.PersistentVolume
	s.write(func(ctx context.Context) error {
		return boundary.Do("schedule/prebind-volume", func() (err error) {
			answer, err = s.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, body.bytes(), metav1.PatchOptions{})
			return err
		})
	}, func(err error) {
		if err == nil {
			s.cluster.confirmVolume(answer, owner)
			s.wakeUsers(claimRefKey(pv.Spec.ClaimRef)) // the watch may have been faster: then no event comes after this
			s.Trace.Record(trace.Entry{Step: trace.Scheduled, State: trace.Done, Claim: trace.ClaimOf(answer), Volume: answer.Name, Node: node, Pod: trace.Pod(p.pod),
				Detail: "chose volume " + answer.Name + " on node " + node})
		} else {
			s.undoVolume(p, pv.Name, claimRefKey(pv.Spec.ClaimRef)) // also when the pod has left meanwhile
		}
		s.wrote(p, attempt, err)
	})
}

// writeClaim sets the claim's selected node, which has it provisioned. The UID is the only condition: the annotation
// is right whatever else has changed in the claim meanwhile, and a conflict here would cost the journey a round trip.
//
// The provisioner's name goes along. It is what the claim room writes next on such a claim, for the class that was
// looked at here, and a write of its own would stand between the choice of the node and the provisioner.
func (s *Scheduler) writeClaim(p *pendingPod, claim *v1.PersistentVolumeClaim) {
	attempt, owner, node := p.attempt, p.pod.UID, p.decision.node
	annotations := map[string]string{storagehelpers.AnnSelectedNode: node}
	if class := s.cluster.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]; class != nil && external(class.Provisioner) {
		annotations[storagehelpers.AnnStorageProvisioner] = class.Provisioner
		annotations[storagehelpers.AnnBetaStorageProvisioner] = class.Provisioner
	}
	body := patch{Metadata: patchMetadata{UID: claim.UID, Annotations: annotations}}
	var answer *v1.PersistentVolumeClaim
	s.write(func(ctx context.Context) error {
		return boundary.Do("schedule/select-node", func() (err error) {
			answer, err = s.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, body.bytes(), metav1.PatchOptions{})
			return err
		})
	}, func(err error) {
		if err == nil {
			s.cluster.confirmClaim(answer, owner)
			s.wakeUsers(claimKey(claim)) // the watch may have been faster: then no event comes after this
			s.Trace.Record(trace.Entry{Step: trace.Scheduled, State: trace.Done, Claim: trace.Claim(answer), Node: node, Pod: trace.Pod(p.pod),
				Detail: "chose node " + node + " for the volume"})
		} else {
			s.undoClaim(p, claimKey(claim)) // also when the pod has left meanwhile
		}
		s.wrote(p, attempt, err)
	})
}

// external says that a provisioner is a driver of its own, and not a plugin of the claim room or one that has been
// migrated: whose name that is to be, the claim room finds out.
func external(provisioner string) bool { return !strings.HasPrefix(provisioner, "kubernetes.io/") }

// bind binds the pod to its node.
func (s *Scheduler) bind(p *pendingPod) {
	attempt, pod, node := p.attempt, p.pod, p.decision.node
	s.write(func(ctx context.Context) error {
		err := boundary.Do("schedule/bind-pod", func() error {
			return s.Client.CoreV1().Pods(pod.Namespace).Bind(ctx, &v1.Binding{
				ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
				Target:     v1.ObjectReference{Kind: "Node", Name: node},
			}, metav1.CreateOptions{})
		})
		if err == nil {
			s.Trace.Record(trace.Entry{Step: trace.Scheduled, State: trace.Done, Pod: trace.Pod(pod), Node: node, Detail: "assigned the pod to node " + node})
			s.Events.Eventf(pod, v1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node)
		}
		return err
	}, func(err error) {
		if err == nil {
			s.metrics.attempt("scheduled")
		}
		s.bound(p, attempt, err)
	})
}
