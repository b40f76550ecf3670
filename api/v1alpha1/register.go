package v1alpha1

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group of all kinds here.
const Group = "storage.berth.io"

// Kinds and resources.
var (
	GroupVersion             = schema.GroupVersion{Group: Group, Version: "v1alpha1"}
	SnapshotScheduleKind     = GroupVersion.WithKind("SnapshotSchedule")
	SnapshotScheduleResource = GroupVersion.WithResource("snapshotschedules")
)
