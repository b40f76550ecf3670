package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group of all kinds here.
const Group = "storage.berth.io"

// Kinds and resources.
var (
	GroupVersion             = schema.GroupVersion{Group: Group, Version: "v1alpha1"}
	SnapshotScheduleKind     = GroupVersion.WithKind("SnapshotSchedule")
	SnapshotScheduleResource = GroupVersion.WithResource("snapshotschedules")
	BlockPoolKind            = GroupVersion.WithKind("BlockPool")
	BlockPoolResource        = GroupVersion.WithResource("blockpools")
	BlockVolumeKind          = GroupVersion.WithKind("BlockVolume")
	BlockVolumeResource      = GroupVersion.WithResource("blockvolumes")
	BlockSnapshotKind        = GroupVersion.WithKind("BlockSnapshot")
	BlockSnapshotResource    = GroupVersion.WithResource("blocksnapshots")
)

// AddToScheme makes a scheme know all kinds here.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&SnapshotSchedule{}, &SnapshotScheduleList{},
		&BlockPool{}, &BlockPoolList{},
		&BlockVolume{}, &BlockVolumeList{},
		&BlockSnapshot{}, &BlockSnapshotList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
