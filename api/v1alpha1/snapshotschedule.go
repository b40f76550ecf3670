package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SnapshotSchedule takes VolumeSnapshots of the claims that it selects, at the times of a cron expression, and keeps the
// newest of them. It works through VolumeSnapshots, and so with any CSI driver that takes them.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=snapsched,categories=storage
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Schedule",type=string,JSONPath=`.spec.schedule`
// +kubebuilder:printcolumn:name="Keep",type=integer,JSONPath=`.spec.keep`
// +kubebuilder:printcolumn:name="Suspend",type=boolean,JSONPath=`.spec.suspend`
// +kubebuilder:printcolumn:name="Claims",type=integer,JSONPath=`.status.claims`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Last",type=date,JSONPath=`.status.lastScheduleTime`
// +kubebuilder:printcolumn:name="Next",type=string,JSONPath=`.status.nextScheduleTime`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 52",message="the name must have no more than 52 characters: the snapshots' names begin with it"
type SnapshotSchedule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SnapshotScheduleSpec `json:"spec"`
	// +optional
	Status SnapshotScheduleStatus `json:"status,omitempty"`
}

// SnapshotScheduleSpec is what a user asks for.
//
// +kubebuilder:validation:XValidation:rule="!has(self.volumeGroupSnapshotClassName) || (has(self.group) && self.group)",message="volumeGroupSnapshotClassName is for group: true"
// +kubebuilder:validation:XValidation:rule="!has(self.volumeSnapshotClassName) || !has(self.group) || !self.group",message="group: true takes its class from volumeGroupSnapshotClassName"
// +kubebuilder:validation:XValidation:rule="!has(self.group) || !self.group || !has(self.selector.matchExpressions)",message="group: true selects by matchLabels alone: group snapshots know no matchExpressions"
type SnapshotScheduleSpec struct {
	// Schedule is a cron expression of five fields (minute, hour, day of month, month, day of week), @hourly, @daily, @weekly,
	// @monthly, @yearly, or @every followed by a duration of at least one second, such as @every 6h.
	//
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.matches('^ *(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|@every [0-9][0-9a-z.]*|[^@ =]+( +[^@ =]+){4}) *$')",message="want five fields (minute, hour, day of month, month, day of week; the time zone stands in timeZone), or @hourly, @daily, @weekly, @monthly, @yearly, or @every and a duration such as 6h"
	Schedule string `json:"schedule"`
	// TimeZone in which the schedule is read, by its name in the IANA database, such as Europe/Berlin. UTC when there is none.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self != 'Local' && self.matches('^[A-Za-z][A-Za-z0-9_+/-]*$')",message="want a name of the IANA database of time zones, such as Europe/Berlin"
	TimeZone string `json:"timeZone,omitempty"`
	// Keep is how many snapshots that are ready to use stay, of each claim; with group: true, how many group snapshots. Older
	// ones are deleted.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	Keep int32 `json:"keep"`
	// Selector of the claims, in the schedule's namespace. {} selects all.
	Selector metav1.LabelSelector `json:"selector"`
	// VolumeSnapshotClassName of the snapshots; the driver's default class when there is none.
	//
	// +optional
	VolumeSnapshotClassName *string `json:"volumeSnapshotClassName,omitempty"`
	// Suspend takes no snapshots while it is true, and deletes none. Times that pass meanwhile are not made up for.
	//
	// +optional
	Suspend bool `json:"suspend,omitempty"`
	// Group takes one VolumeGroupSnapshot of all selected claims at one instant, instead of a snapshot of each.
	//
	// +optional
	Group bool `json:"group,omitempty"`
	// VolumeGroupSnapshotClassName of the group snapshots; the driver's default class when there is none.
	//
	// +optional
	VolumeGroupSnapshotClassName *string `json:"volumeGroupSnapshotClassName,omitempty"`
}

// SnapshotScheduleStatus is what became of it.
type SnapshotScheduleStatus struct {
	// ObservedGeneration of the spec that the rest is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Since is from when on snapshots are due: the schedule was made, changed or resumed.
	//
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// LastScheduleTime is the latest time of the schedule for which snapshots were made.
	//
	// +optional
	LastScheduleTime *metav1.Time `json:"lastScheduleTime,omitempty"`
	// NextScheduleTime is when the next ones are made.
	//
	// +optional
	NextScheduleTime *metav1.Time `json:"nextScheduleTime,omitempty"`
	// Claims that were selected the last time.
	//
	// +optional
	Claims int32 `json:"claims"`
	// Snapshots, or group snapshots, of this schedule that exist.
	//
	// +optional
	Snapshots int32 `json:"snapshots"`
	// Ready are those of them that can be restored.
	//
	// +optional
	Ready int32 `json:"ready"`
	// Conditions: Scheduled is True while the next time is known; else its reason is ScheduleInvalid or Suspended.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SnapshotScheduleList is a list of them.
//
// +kubebuilder:object:root=true
type SnapshotScheduleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []SnapshotSchedule `json:"items"`
}

// ConditionScheduled is the type of the condition, and its reasons are below.
const (
	ConditionScheduled = "Scheduled"

	ReasonScheduled       = "Scheduled"
	ReasonScheduleInvalid = "ScheduleInvalid"
	ReasonSuspended       = "Suspended"
)

// On every VolumeSnapshot and VolumeGroupSnapshot that a schedule makes.
const (
	// LabelSchedule is the schedule's name; LabelScheduleUID tells it from another one of that name.
	LabelSchedule    = Group + "/schedule"
	LabelScheduleUID = Group + "/schedule-uid"
	// AnnotationScheduledAt is the time of the schedule for which it was made (RFC 3339).
	AnnotationScheduledAt = Group + "/scheduled-at"
)
