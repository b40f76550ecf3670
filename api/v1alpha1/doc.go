// Package v1alpha1 has Berth's own API types, group storage.berth.io.
//
// The definitions in internal/standalone/manifests are made from the types' comments: `go generate ./api/...`.
//
// +kubebuilder:object:generate=true
// +groupName=storage.berth.io
package v1alpha1

//go:generate go run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.19.0 object paths=. crd:maxDescLen=400 output:crd:dir=../../internal/standalone/manifests
