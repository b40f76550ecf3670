package loop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// format of an event that the kernel's block layer tells: its number, and where in it the fields are, which a kernel may decide as it likes.
type format struct {
	id                             uint64
	device, sector, sectors, flags int
}

// Sizes of the fields, the same in every kernel: dev_t, sector_t, unsigned int, and a text.
const (
	deviceField  = 4
	sectorField  = 8
	sectorsField = 4
)

// Events of a request's life.
const (
	issued    = "block_rq_issue"
	completed = "block_rq_complete"
)

// readFormat reads what an event looks like.
func readFormat(event string) (format, error) {
	const usual = "/sys/kernel/tracing"
	name := filepath.Join("events/block", event, "format")
	text, err := os.ReadFile(filepath.Join(usual, name))
	if err != nil {
		// Not mounted there, or not at all: the kernel has it all the same.
		if text, err = readTracing(name); err != nil {
			return format{}, err
		}
	}
	f, err := parseFormat(text)
	if err != nil {
		return format{}, fmt.Errorf("the format of %s: %w", event, err)
	}
	return f, nil
}

// readTracing reads a file of the kernel's tracefs without mounting it anywhere.
func readTracing(name string) ([]byte, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of tracefs: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return io.ReadAll(f)
}

// parseFormat reads an event's format file: "ID: 2107", and lines such as
// "field:sector_t sector;	offset:16;	size:8;	signed:0;".
func parseFormat(text []byte) (format, error) {
	f := format{device: -1, sector: -1, sectors: -1, flags: -1}
	for line := range bytes.Lines(text) {
		line := strings.TrimSpace(string(line))
		if id, ok := strings.CutPrefix(line, "ID: "); ok {
			n, err := strconv.ParseUint(id, 10, 32)
			if err != nil {
				return format{}, fmt.Errorf("%q", line)
			}
			f.id = n
			continue
		}
		what, rest, _ := strings.Cut(line, ";")
		words := strings.Fields(what)
		var offset, size int
		if len(words) == 0 {
			continue
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "offset:%d; size:%d;", &offset, &size); err != nil || offset < 0 || offset > 1<<12 {
			continue
		}
		switch name, _, _ := strings.Cut(words[len(words)-1], "["); {
		case name == "dev" && size == deviceField:
			f.device = offset
		case name == "sector" && size == sectorField:
			f.sector = offset
		case name == "nr_sector" && size == sectorsField:
			f.sectors = offset
		case name == "rwbs" && size > 0:
			f.flags = offset
		}
	}
	if f.id == 0 || f.device < 0 || f.sector < 0 || f.sectors < 0 || f.flags < 0 {
		return format{}, errors.New("not one that this program knows")
	}
	return f, nil
}
