package objects

import (
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
)

// patchOp is one operation of a JSON patch (RFC 6902).
type patchOp struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// StatusPatch is the JSON patch that replaces the status of this object, and of no later one of its name. Nobody but the node's agent
// writes it, so that its version does not matter.
func StatusPatch(uid types.UID, status any) ([]byte, error) {
	return json.Marshal([]patchOp{{"test", "/metadata/uid", uid}, {"add", "/status", status}})
}

// ReleasePatch is the JSON patch that takes the node's finalizer from this object, if it has it, and from no later one of its name.
func ReleasePatch(o metav1.Object) ([]byte, error) {
	ops := []patchOp{{"test", "/metadata/uid", o.GetUID()}}
	if i := slices.Index(o.GetFinalizers(), api.FinalizerNode); i >= 0 {
		at := fmt.Sprintf("/metadata/finalizers/%d", i)
		ops = append(ops, patchOp{"test", at, api.FinalizerNode}, patchOp{Op: "remove", Path: at})
	}
	return json.Marshal(ops)
}
