package claim

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Protection finalizers, spelled as upstream's. The API server's StorageObjectInUseProtection admission puts them on
// new objects, so adding them here is for objects that came in without it.
const (
	claimProtection  = "kubernetes.io/pvc-protection"
	volumeProtection = "kubernetes.io/pv-protection"
	vacProtection    = "kubernetes.io/vac-protection"
)

// protection is what a protected object needs.
type protection int

const (
	protected protection = iota // nothing to do
	unguarded                   // alive without the finalizer: add it
	leaving                     // being deleted, kept by the finalizer: take it away once unused
)

func protectionOf(o metav1.Object, finalizer string) protection {
	has := slices.Contains(o.GetFinalizers(), finalizer)
	switch deleted := o.GetDeletionTimestamp() != nil; {
	case deleted && has:
		return leaving
	case !deleted && !has:
		return unguarded
	}
	return protected
}

// addFinalizer and dropFinalizer are strategic merge patches, which change one entry of the list whatever the others
// are by now: taking the last protection away must not meet a conflict with a provisioner that drops its own.
func addFinalizer(o metav1.Object, finalizer string) patch {
	return newPatch(o).finalizers([]string{finalizer})
}

func dropFinalizer(o metav1.Object, finalizer string) patch {
	p := newPatch(o)
	p["metadata"].(map[string]any)["$deleteFromPrimitiveList/finalizers"] = []string{finalizer}
	return p
}
