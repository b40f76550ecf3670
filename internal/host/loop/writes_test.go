package loop

import (
	"strings"
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
	if want := (format{id: 2107, device: 8, sector: 16, sectors: 24, flags: 34}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for name, text := range map[string]string{
		"empty":            "",
		"no device":        strings.Replace(formatOf, "dev_t dev;", "dev_t x;", 1),
		"no fields":        "ID: 3\n",
		"no number":        "ID: x\n",
		"another size":     "ID: 3\n\tfield:u32 sector;\toffset:16;\tsize:4;\n\tfield:int nr_sector;\toffset:24;\tsize:4;\n\tfield:char rwbs[8];\toffset:34;\tsize:8;\n",
		"far outside":      "ID: 3\n\tfield:u64 sector;\toffset:16000000;\tsize:8;\n",
		"without the type": "ID: 3\n;\toffset:16;\tsize:8;\n",
	} {
		if got, err := parseFormat([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzParseFormat(f *testing.F) {
	f.Add([]byte(formatOf))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseFormat(text)
		if err != nil {
			return
		}
		for _, at := range []int{got.device, got.sector, got.sectors, got.flags} {
			if at < 0 || at > 1<<12 {
				t.Errorf("%+v", got)
			}
		}
	})
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
