package main

import (
	"strings"

	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

// Who runs the volume controllers.
const (
	volumeControllersBerth    = "berth"
	volumeControllersUpstream = "upstream"
)

// genericControllers have nothing to do with volumes. Left out: the node lifecycle and taint eviction controllers (the
// one node is this machine; when it was switched off overnight its pods must not be evicted in the morning),
// whatever serves networking, and autoscaling.
var genericControllers = []string{
	names.NamespaceController,
	names.GarbageCollectorController,
	names.ServiceAccountController,
	names.ServiceAccountTokenController,
	names.RootCACertificatePublisherController,
	names.ClusterRoleAggregationController,
	names.ResourceQuotaController,
	names.StatefulSetController,
	names.DeploymentController,
	names.ReplicaSetController,
	names.DaemonSetController,
	names.JobController,
	names.CronJobController,
	names.DisruptionController,
	names.TTLAfterFinishedController,
	names.PodGarbageCollectorController,
}

// upstreamVolumeControllers are what Berth replaces; `berth up --controllers=upstream` runs them, so that behaviour can
// be compared object by object.
var upstreamVolumeControllers = []string{
	names.PersistentVolumeBinderController,
	names.PersistentVolumeAttachDetachController,
	names.PersistentVolumeExpanderController,
	names.PersistentVolumeClaimProtectionController,
	names.PersistentVolumeProtectionController,
	names.VolumeAttributesClassProtectionController,
	names.EphemeralVolumeController,
}

// runControllers runs upstream's kube-controller-manager with the controllers asked for.
func runControllers(o options, c *credentials) error {
	run := genericControllers
	if o.controllers == volumeControllersUpstream {
		run = append(append([]string{}, run...), upstreamVolumeControllers...)
	}
	cmd := kcm.NewControllerManagerCommand()
	args := []string{
		"--kubeconfig=" + o.kubeconfig,
		"--authentication-kubeconfig=" + o.kubeconfig,
		"--authorization-kubeconfig=" + o.kubeconfig,
		"--leader-elect=false",
		"--secure-port=0",
		"--service-account-private-key-file=" + c.path(serviceAccountKey),
		"--root-ca-file=" + c.path(caCert),
		"--use-service-account-credentials=false",
		"--kube-api-qps=500", "--kube-api-burst=1000",
		"--enable-dynamic-provisioning=true",
		"--controllers=" + strings.Join(run, ","),
	}
	if o.volumePluginDir != "" {
		args = append(args, "--flex-volume-plugin-dir="+o.volumePluginDir)
	}
	cmd.SetArgs(args)
	return cmd.Execute()
}
