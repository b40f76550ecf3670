// Package v1alpha1 has Berth's own API types, group storage.berth.io.
//
// SnapshotSchedule is a user's, in a cluster and standalone. BlockPool, BlockVolume and BlockSnapshot are what the controller and the
// node agents of the block store share in a cluster (docs/blockvolume.md); a standalone instance has one process and does without
// them, so that its first start need not wait for three more definitions to be served.
//
// The definitions are made from the types' comments: `go generate ./api/...` writes them all to deploy/kubernetes/crds, and
// copies SnapshotSchedule's to internal/standalone/manifests, from where `berth up` installs it.
//
// +kubebuilder:object:generate=true
// +groupName=storage.berth.io
package v1alpha1

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.19.0 object paths=. crd:maxDescLen=400 output:crd:dir=../../deploy/kubernetes/crds
//go:generate cp ../../deploy/kubernetes/crds/storage.berth.io_snapshotschedules.yaml ../../internal/standalone/manifests/
