package block

import (
	"errors"
	"testing"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
)

func TestVolumeSize(t *testing.T) {
	const mib = int64(1) << 20
	for name, tc := range map[string]struct {
		required, limit int64
		fsType          string
		want            int64
		err             error
	}{
		"nothing asked":            {0, 0, "ext4", 1024 * mib, nil},
		"only a limit":             {0, 500 * mib, "ext4", 500 * mib, nil},
		"a limit below ext4":       {0, mib, "ext4", 0, backend.ErrTooLarge},
		"rounded up":               {100*mib + 1, 0, "ext4", 101 * mib, nil},
		"rounding breaks a limit":  {100*mib + 1, 100*mib + 2, "ext4", 0, backend.ErrTooLarge},
		"negative":                 {-5, 0, "ext4", 0, backend.ErrInvalid},
		"negative limit":           {0, -5, "ext4", 0, backend.ErrInvalid},
		"limit below the required": {2 * mib, mib, "", 0, backend.ErrInvalid},
		"xfs below its minimum":    {299 * mib, 0, "xfs", 300 * mib, nil},
		"xfs limited to less":      {100 * mib, 299 * mib, "xfs", 0, backend.ErrTooLarge},
		"btrfs below its minimum":  {mib, 200 * mib, "btrfs", 128 * mib, nil},
		"xfs at its minimum":       {300 * mib, 0, "xfs", 300 * mib, nil},
		"a small raw volume":       {1, 0, "", mib, nil},
		"enormous":                 {1<<63 - 1, 0, "ext4", 0, backend.ErrTooLarge},
		"unknown filesystem":       {mib, 0, "zfs", 0, backend.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := volumeSize(backend.CreateRequest{RequiredBytes: tc.required, LimitBytes: tc.limit, FSType: tc.fsType})
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("%d, %v; want %d, %v", got, err, tc.want, tc.err)
			}
		})
	}
}

// A source that has the least size of its filesystem may have been asked for with less: a copy of it may be, too.
func TestSizeOfACopy(t *testing.T) {
	const mib = int64(1) << 20
	for name, tc := range map[string]struct {
		source, required, limit int64
		from, fsType            string
		want                    int64
		err                     error
	}{
		"as large":                         {source: 20 * mib, required: 20 * mib, from: "ext4", fsType: "ext4", want: 20 * mib},
		"larger":                           {source: 20 * mib, required: 30 * mib, from: "ext4", fsType: "ext4", want: 30 * mib},
		"no size asked":                    {source: 20 * mib, from: "ext4", fsType: "ext4", want: 20 * mib},
		"smaller":                          {source: 20 * mib, required: 19 * mib, from: "ext4", fsType: "ext4", err: backend.ErrTooLarge},
		"smaller than the least":           {source: 8 * mib, required: mib, from: "ext4", fsType: "ext4", want: 8 * mib},
		"smaller than the least, as block": {source: 8 * mib, required: mib, from: "ext4", want: 8 * mib},
		"smaller than the least, limited":  {source: 8 * mib, required: mib, limit: 7 * mib, from: "ext4", fsType: "ext4", err: backend.ErrTooLarge},
		"smaller than the least, in it":    {source: 8 * mib, required: mib, limit: 8 * mib, from: "ext4", fsType: "ext4", want: 8 * mib},
		"smaller than the least of xfs":    {source: 300 * mib, required: 40 * mib, from: "xfs", fsType: "ext4", want: 300 * mib},
		"smaller than a raw one":           {source: 8 * mib, required: mib, err: backend.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			r := backend.CreateRequest{RequiredBytes: tc.required, LimitBytes: tc.limit, FSType: tc.fsType, FSTypeIsDefault: true}
			o := origin{sizeBytes: tc.source, fsType: tc.from, words: "snapshot s"}
			if err := o.adapt(&r); !errors.Is(err, tc.err) || tc.err == nil && r.RequiredBytes != tc.want {
				t.Errorf("%d, %v; want %d, %v", r.RequiredBytes, err, tc.want, tc.err)
			}
		})
	}
}

func FuzzIDFor(f *testing.F) {
	f.Add("pvc-0a1b2c3d-0000-1111-2222-333344445555")
	f.Add("../../etc/passwd")
	f.Fuzz(func(t *testing.T, name string) {
		id := backend.VolumeID(name)
		if err := pool.ValidID(id); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if id != name && backend.VolumeID(id) == id {
			t.Errorf("%q and %q have one id", name, id)
		}
	})
}

func TestCompatible(t *testing.T) {
	v := pool.Volume{Name: "n", SizeBytes: 100, FSType: "ext4"}
	for name, tc := range map[string]struct {
		r  backend.CreateRequest
		ok bool
	}{
		"the same":          {backend.CreateRequest{Name: "n", RequiredBytes: 100, FSType: "ext4"}, true},
		"no size":           {backend.CreateRequest{Name: "n", FSType: "ext4"}, true},
		"within the limits": {backend.CreateRequest{Name: "n", RequiredBytes: 50, LimitBytes: 200, FSType: "ext4"}, true},
		"larger":            {backend.CreateRequest{Name: "n", RequiredBytes: 101, FSType: "ext4"}, false},
		"smaller":           {backend.CreateRequest{Name: "n", RequiredBytes: 50, LimitBytes: 60, FSType: "ext4"}, false},
		"another type":      {backend.CreateRequest{Name: "n", FSType: "xfs"}, false},
		"another class":     {backend.CreateRequest{Name: "n", FSType: "ext4", Parameters: map[string]string{"access": "local"}}, false},
	} {
		if err := compatible(v, tc.r, 0); (err == nil) != tc.ok || err != nil && !errors.Is(err, backend.ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
