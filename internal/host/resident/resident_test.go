package resident

import (
	"os"
	"reflect"
	"testing"
)

const maps = `00400000-00401000 r--p 00000000 fe:00 1234 /usr/bin/program
Size:                  4 kB
Anonymous:             0 kB
00401000-00900000 r-xp 00001000 fe:00 1234 /usr/bin/program
Anonymous:             0 kB
00900000-00a00000 r--p 00500000 fe:00 1234 /usr/bin/program
Rss:                1024 kB
Anonymous:            16 kB
00a00000-00b00000 rw-p 00600000 fe:00 1234 /usr/bin/program
Anonymous:             0 kB
00b00000-00c00000 r--s 00600000 fe:00 1234 /usr/bin/program
Anonymous:             0 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:00 99 /lib/libc.so.6
Anonymous:             0 kB
7f0000200000-7f0000300000 r-xp 00000000 00:00 0
Anonymous:             0 kB
zzzz-00001 r-xp 00000000 fe:00 1234 /usr/bin/program
Anonymous:             0 kB
`

func TestOnlyUnchangedMappingsOfTheProgram(t *testing.T) {
	want := []span{{0x400000, 0x401000}, {0x401000, 0x900000}}
	if got := clean([]byte(maps), "/usr/bin/program"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if got := clean([]byte("00400000-00401000 r-xp 00000000 fe:00 1234 /usr/bin/program\nRss: 4 kB\n"), "/usr/bin/program"); got != nil {
		t.Errorf("a kernel that does not tell of changed pages: %x", got)
	}
}

// The program goes on after its code is gone from memory, and its constants are what they were.
func TestTrim(t *testing.T) {
	before := maps
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(clean(smaps, program)) == 0 {
		t.Fatalf("no mapping of %s is known as unchanged:\n%s", program, smaps)
	}
	for range 3 {
		if err := Trim(); err != nil {
			t.Fatal(err)
		}
	}
	if got := clean([]byte(before), "/usr/bin/program"); len(got) != 2 {
		t.Errorf("after Trim: %x", got)
	}
}
