// Package retention takes snapshots by schedule and keeps the newest of them: the SnapshotSchedule of api/v1alpha1.
//
// What flows in: SnapshotSchedules, the claims and the snapshots of the API, and the clock. What flows out: VolumeSnapshots
// or VolumeGroupSnapshots, and the schedules' status. The room knows no driver and no backend: whoever serves snapshots
// in this API (provision) takes what it asks for, so that a schedule works with any CSI driver.
//
// Everything is decided by pure functions of the objects and the time: when snapshots are due (plan.go, cron.go), of what
// (pick.go) and which may go (surplus.go). The controller asks them on every event and once at the next due time, which it
// leaves to one alarm of the kernel that also wakes it when the clock is set (alarm.go). Nothing polls.
//
// A run may die anywhere. The snapshots are named by schedule, claim and due time, and the status that says "done" is
// written last: the next start makes the same names again, and only those that are missing come of it.
package retention
