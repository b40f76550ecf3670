package schedule

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

// resources are amounts: cpu in thousandths of a core, the others in their own unit (bytes for memory).
type resources map[v1.ResourceName]int64

// requestsOf is what the pod asks of a node.
func requestsOf(pod *v1.Pod) resources {
	list := resource.PodRequests(pod, resource.PodResourcesOptions{})
	r := make(resources, len(list))
	for name := range list {
		r[name] = amount(list, name)
	}
	return r
}

func amount(list v1.ResourceList, name v1.ResourceName) int64 {
	q, ok := list[name]
	switch {
	case !ok:
		return 0
	case name == v1.ResourceCPU:
		return q.MilliValue()
	}
	return q.Value()
}

func (r *resources) add(o resources) {
	if *r == nil {
		*r = resources{}
	}
	for name, n := range o {
		(*r)[name] += n
	}
}

func (r *resources) subtract(o resources) {
	for name, n := range o {
		(*r)[name] -= n
	}
}

// lacking names what the node has too little of for the pod, in upstream's words (noderesources/fit.go).
func lacking(n *nodeState, requests resources) []string {
	var reasons []string
	allocatable := n.object.Status.Allocatable
	if int64(len(n.pods))+1 > amount(allocatable, v1.ResourcePods) {
		reasons = append(reasons, "Too many pods")
	}
	for name, want := range requests {
		if want > 0 && want > amount(allocatable, name)-n.used[name] {
			reasons = append(reasons, fmt.Sprintf("Insufficient %v", name))
		}
	}
	return reasons
}
