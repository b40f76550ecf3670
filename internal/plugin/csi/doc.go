// Package csi serves CSI volumes: PersistentVolumes with a csi source, and inline ephemeral ones.
//
// Phase 2 (attacher.go): an attachment is a VolumeAttachment object; the driver's attacher acts on it. Phase 3 (stage.go,
// publish.go, block.go, expand.go): calls to the driver's node service over its unix socket, at the kubelet's paths.
// Drivers come and go at run time through Drivers (drivers.go), which the node's plugin registration fills.
//
// What must survive a crash is on the disk before the driver is called: vol_data.json beside each staging directory and beside
// each target, so that everything can be taken away again with neither the API nor our own memory.
//
// Behaviour, names and paths follow upstream's pkg/volume/csi.
package csi
