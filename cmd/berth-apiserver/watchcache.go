package main

// uncached are the kinds without a watch cache. Each cache wakes the processor about once a second for as long as the
// API serves (the timer of its bookmarks), which for some 80 kinds was the largest part of what an idle instance did.
// These hardly change in an instance for storage, and besides the API server itself one or two watch them: etcd serves
// those as well. What pods and volumes go through keeps its cache.
var uncached = []string{
	"endpoints", "limitranges", "podtemplates", "replicationcontrollers",
	"mutatingadmissionpolicies.admissionregistration.k8s.io", "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
	"mutatingwebhookconfigurations.admissionregistration.k8s.io", "validatingadmissionpolicies.admissionregistration.k8s.io",
	"validatingadmissionpolicybindings.admissionregistration.k8s.io", "validatingwebhookconfigurations.admissionregistration.k8s.io",
	"apiservices.apiregistration.k8s.io",
	"daemonsets.apps",
	"horizontalpodautoscalers.autoscaling",
	"cronjobs.batch",
	"certificatesigningrequests.certificates.k8s.io",
	"endpointslices.discovery.k8s.io",
	"flowschemas.flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
	"volumegroupsnapshotclasses.groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents.groupsnapshot.storage.k8s.io",
	"volumegroupsnapshots.groupsnapshot.storage.k8s.io",
	"ingressclasses.networking.k8s.io", "ingresses.networking.k8s.io", "ipaddresses.networking.k8s.io",
	"networkpolicies.networking.k8s.io", "servicecidrs.networking.k8s.io",
	"runtimeclasses.node.k8s.io",
	"poddisruptionbudgets.policy",
	"clusterrolebindings.rbac.authorization.k8s.io", "clusterroles.rbac.authorization.k8s.io",
	"rolebindings.rbac.authorization.k8s.io", "roles.rbac.authorization.k8s.io",
	"deviceclasses.resource.k8s.io", "resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io", "resourceslices.resource.k8s.io",
	"priorityclasses.scheduling.k8s.io",
	"snapshotmetadataservices.cbt.storage.k8s.io",
	"snapshotschedules.storage.berth.io",
}

// watchCacheSizes is uncached as kube-apiserver's flag has it.
func watchCacheSizes() []string {
	sizes := make([]string, len(uncached))
	for i, resource := range uncached {
		sizes[i] = resource + "#0"
	}
	return sizes
}
