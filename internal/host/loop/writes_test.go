package loop

import (
	"encoding/binary"
	"slices"
	"testing"
)

// formatOf is what Linux 6.18 says of block_rq_complete.
const formatOf = `name: block_rq_complete
ID: 2107
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;

print fmt: "%d,%d %s", REC->dev
`

func TestParseFormat(t *testing.T) {
	got, err := parseFormat([]byte(formatOf))
	if want := (fields{id: 2107, sector: 16, sectors: 24, flags: 34}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for name, format := range map[string]string{
		"empty":            "",
		"no fields":        "ID: 3\n",
		"no number":        "ID: x\n",
		"another size":     "ID: 3\n\tfield:u32 sector;\toffset:16;\tsize:4;\n\tfield:int nr_sector;\toffset:24;\tsize:4;\n\tfield:char rwbs[8];\toffset:34;\tsize:8;\n",
		"far outside":      "ID: 3\n\tfield:u64 sector;\toffset:16000000;\tsize:8;\n",
		"without the type": "ID: 3\n;\toffset:16;\tsize:8;\n",
	} {
		if got, err := parseFormat([]byte(format)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzParseFormat(f *testing.F) {
	f.Add([]byte(formatOf))
	f.Fuzz(func(t *testing.T, format []byte) {
		known, err := parseFormat(format)
		if err != nil {
			return
		}
		known.written(nil)
		known.written(make([]byte, 64))
	})
}

func TestWritten(t *testing.T) {
	known, err := parseFormat([]byte(formatOf))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		sector  uint64
		sectors uint32
		flags   string
		want    Written
		changes bool
	}{
		"a write":            {8, 8, "WS", Written{4096, 4096}, true},
		"a write with flush": {0, 1, "FWFSM", Written{0, 512}, true},
		"a discard":          {2048, 1 << 20, "D", Written{1 << 20, 1 << 29}, true},
		"zeros":              {8, 8, "N", Written{4096, 4096}, true},
		"a read":             {8, 8, "R", Written{}, false},
		"a read ahead":       {8, 8, "RA", Written{}, false},
		"a flush":            {1<<64 - 1, 0, "FF", Written{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			sample := make([]byte, 64)
			binary.NativeEndian.PutUint64(sample[16:], tc.sector)
			binary.NativeEndian.PutUint32(sample[24:], tc.sectors)
			copy(sample[34:], tc.flags)
			if got, changes := known.written(sample); got != tc.want || changes != tc.changes {
				t.Errorf("%+v, %v", got, changes)
			}
		})
	}
	if got, changes := known.written(make([]byte, 20)); !changes || got.Length < 1<<62 {
		t.Errorf("of a sample that is cut short: %+v, %v: it may be anything", got, changes)
	}
}

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0-3": {0, 1, 2, 3}, "0-1,4,6-7": {0, 1, 4, 6, 7}} {
		if got, err := parseCPUs(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", list, got, err)
		}
	}
	for _, list := range []string{"", "x", "3-1", "-1", "0-", "0-99999999"} {
		if got, err := parseCPUs(list); err == nil {
			t.Errorf("%q: %v", list, got)
		}
	}
}

func TestBytesAccounted(t *testing.T) {
	const stat = "  9 0 72 1 5 0 40 2 0 3 3 7 0 1024 0 4 1\n"
	if got, err := bytesAccounted(stat); err != nil || got != (40+1024)*512 {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "1 2 3", "0 0 0 0 0 0 x 0 0 0 0 0 0 0 0"} {
		if got, err := bytesAccounted(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}
