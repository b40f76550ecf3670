package backend

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

// Ids are functions of names alone: the same request again, after a crash, from another goroutine or from another process, is
// about the same volume or snapshot. The names that the sidecars choose are used as they are, so that what is on the disk has the
// name of its Kubernetes object; any other name is hashed. An id is 1 to 63 of a-z, 0-9 and '-': one element of a path.
var (
	provisionerName      = regexp.MustCompile(`^pvc-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	snapshotterName      = regexp.MustCompile(`^snapshot-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	groupSnapshotterName = regexp.MustCompile(`^groupsnapshot-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// VolumeID is the id of the volume that is asked for by name.
func VolumeID(name string) string { return idOf(name, provisionerName, "vol-") }

// SnapshotID is the id of the snapshot that is asked for by name.
func SnapshotID(name string) string { return idOf(name, snapshotterName, "snap-") }

// GroupID is the id of the group snapshot that is asked for by name.
func GroupID(name string) string { return idOf(name, groupSnapshotterName, "group-") }

// MemberID is the id of a group's snapshot of one volume.
func MemberID(group, volume string) string { return "member-" + hashOf(group+"/"+volume) }

func idOf(name string, kept *regexp.Regexp, prefix string) string {
	if kept.MatchString(name) {
		return name
	}
	return prefix + hashOf(name)
}

func hashOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}
