package filesystem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

func image(at int, magic string) []byte {
	b := make([]byte, 3<<20)
	copy(b[at:], magic)
	return b
}

func ext(compat, incompat uint32) []byte {
	b := image(1024+56, "\x53\xef")
	binary.LittleEndian.PutUint32(b[1024+0x5c:], compat)
	binary.LittleEndian.PutUint32(b[1024+0x60:], incompat)
	return b
}

func TestRecognise(t *testing.T) {
	for name, tc := range map[string]struct {
		image []byte
		want  string
	}{
		"blank":                 {make([]byte, 3<<20), ""},
		"tiny and blank":        {make([]byte, 100), ""},
		"ext4":                  {ext(extCompatJournal, extIncompatExtents), Ext4},
		"ext3":                  {ext(extCompatJournal, 0), "ext3"},
		"ext2":                  {ext(0, 0), "ext2"},
		"xfs":                   {image(0, "XFSB"), XFS},
		"btrfs":                 {image(0x10040, "_BHRfS_M"), Btrfs},
		"LUKS":                  {image(0, "LUKS\xba\xbe"), "LUKS"},
		"partition table":       {image(510, "\x55\xaa"), "a partition table"},
		"one byte at its begin": {image(5000, "x"), Unknown},
		"one byte at its end":   {image(3<<20-1, "x"), Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Recognise(bytes.NewReader(tc.image), int64(len(tc.image)))
			if err != nil || got != tc.want {
				t.Errorf("%q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func FuzzRecognise(f *testing.F) {
	f.Add([]byte("XFSB"))
	f.Add(ext(0, 0)[:4096])
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Recognise(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if got == "" && len(data) < edge && !zero(data) {
			t.Error("data taken for blank")
		}
		Outgrown(Ext4, bytes.NewReader(data), int64(len(data)))
		HasErrors(bytes.NewReader(data))
	})
}

func TestOutgrown(t *testing.T) {
	b := ext(extCompatJournal, extIncompat64bit)
	binary.LittleEndian.PutUint32(b[1024+0x18:], 2) // 4096
	binary.LittleEndian.PutUint32(b[1024+0x4:], 100)
	r := bytes.NewReader(b)
	if Outgrown(Ext4, r, 100*4096) || Outgrown(Ext4, r, 101*4096-1) || !Outgrown(Ext4, r, 101*4096) || Outgrown(XFS, r, 1<<30) {
		t.Error("wrong")
	}
}

func TestVersionAtLeast(t *testing.T) {
	for banner, want := range map[string]bool{
		"mke2fs 1.47.0 (5-Feb-2023)": true, "mke2fs 1.46.5 (30-Dec-2021)": false, "mke2fs 1.47-WIP": true, "mke2fs 2.0": true, "": false, "x": false, "a b": false,
	} {
		if versionAtLeast(banner, 1, 47) != want {
			t.Errorf("%q", banner)
		}
	}
}

func TestUnknownFilesystem(t *testing.T) {
	if _, err := MinimumBytes("zfs"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}
