// Package schedule places pods: it chooses the node on which all volumes of a pod can be, has the claims bound there,
// and binds the pod to the node.
//
// What flows in: pods without a node, claims, volumes, nodes, classes, CSINodes, capacities and attachments, as watch
// events. What flows out: a claimRef on volumes that were chosen (prebinding), the selected-node annotation on claims
// that must be provisioned, the Binding of the pod; or the PodScheduled condition that says why there is no node. It
// never binds a claim and never calls a driver.
//
// In the journey it stands between Claimed and Provisioned (a claim of class WaitForFirstConsumer waits for it), and
// again between Bound and Attached (the pod waits for its claims).
//
// The rules, and the words in which a refusal is told, are those of upstream's scheduler plugins VolumeBinding,
// VolumeRestrictions, NodeVolumeLimits, VolumeZone, NodeAffinity, TaintToleration, NodeUnschedulable and
// NodeResourcesFit (k8s.io/kubernetes/pkg/scheduler/framework/plugins).
//
// One goroutine owns all state: the cluster as the watch shows it, laid over with what was decided but is not in the
// watch yet, and the pods that wait. Events and the results of writes come to it through an inbox; decisions are
// functions of the state (decide, settled) with no clock and no client in them; writes run beside it and bring back
// their result. So no pod ever blocks another, and pods that arrive together see each other's decisions.
package schedule
