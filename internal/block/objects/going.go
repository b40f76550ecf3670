package objects

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	api "berth.io/berth/api/v1alpha1"
)

// VolumeGoes says whether a volume is to be deleted, data and all. One that was made goes with the word for it alone
// (api.AnnotationDeleteData); of one whose status tells of no data the node looks whether it has any.
func VolumeGoes(o *api.BlockVolume) bool { return goes(o, o.Status.Phase == api.PhaseReady) }

// SnapshotGoes is the same of a snapshot.
func SnapshotGoes(o *api.BlockSnapshot) bool { return goes(o, o.Status.ReadyToUse) }

func goes(o metav1.Object, made bool) bool {
	return o.GetDeletionTimestamp() != nil && (!made || Marked(o))
}

// Marked says whether the data of an object are to go with it.
func Marked(o metav1.Object) bool { return o.GetAnnotations()[api.AnnotationDeleteData] == o.GetName() }

// MarkPatch is the JSON merge patch (RFC 7396) that marks this object, and no later one of its name.
func MarkPatch(o metav1.Object) ([]byte, error) {
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": o.GetUID(), "annotations": map[string]string{api.AnnotationDeleteData: o.GetName()},
	}})
}

// Kept is what to tell of an object that somebody deleted without the word; "" of any other. kind as kubectl knows it.
func Kept(o metav1.Object, goes bool, kind, owner string) string {
	if o.GetDeletionTimestamp() == nil || goes {
		return ""
	}
	return fmt.Sprintf("its %s was deleted by hand; its data are kept, and it can be used, until its %s is deleted. Without one: kubectl annotate %s %s %s=%s deletes the data",
		kind, owner, kind, o.GetName(), api.AnnotationDeleteData, o.GetName())
}
