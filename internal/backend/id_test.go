package backend

import "testing"

func TestIDs(t *testing.T) {
	const uid = "0a1b2c3d-0000-1111-2222-333344445555"
	for name, tc := range map[string]struct {
		id   func(string) string
		name string
		want string
	}{
		"the provisioner's":            {VolumeID, "pvc-" + uid, "pvc-" + uid},
		"the snapshotter's":            {SnapshotID, "snapshot-" + uid, "snapshot-" + uid},
		"the group snapshotter's":      {GroupID, "groupsnapshot-" + uid, "groupsnapshot-" + uid},
		"a path":                       {VolumeID, "../../etc/passwd", ""},
		"the provisioner's, and more":  {VolumeID, "pvc-" + uid + "/..", ""},
		"a snapshot's name, a volume":  {VolumeID, "snapshot-" + uid, ""},
		"the provisioner's, uppercase": {VolumeID, "pvc-0A1B2C3D-0000-1111-2222-333344445555", ""},
	} {
		got := tc.id(tc.name)
		if tc.want == tc.name && got != tc.want || tc.want != tc.name && got == tc.name {
			t.Errorf("%s: %q became %q", name, tc.name, got)
		}
		if tc.id(tc.name) != got {
			t.Errorf("%s: not the same twice", name)
		}
	}
	if MemberID("g", "a") == MemberID("g", "b") || MemberID("g", "a") == MemberID("h", "a") {
		t.Error("two members of one id")
	}
}
