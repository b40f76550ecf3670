package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrNoSuperblock says that the device does not begin with an XFS superblock; ErrDamaged that it does and the
// superblock's checksum is wrong.
var (
	ErrNoSuperblock = errors.New("no XFS superblock")
	ErrDamaged      = errors.New("XFS superblock damaged")
)

// Superblock is what the pool checks of a filesystem that is not mounted.
type Superblock struct {
	UUID      [16]byte
	Label     string
	DataBytes int64
	// Unfinished: mkfs did not reach its end.
	Unfinished bool
}

// ReadSuperblock reads the first superblock. Only version 5 (with checksums) is accepted: reflink needs it.
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	buf := make([]byte, 512)
	if n, err := r.ReadAt(buf, 0); n < len(buf) {
		return Superblock{}, fmt.Errorf("%w: only %d bytes: %w", ErrNoSuperblock, n, err)
	}
	if string(buf[:4]) != "XFSB" {
		return Superblock{}, ErrNoSuperblock
	}
	const crcAt = 224
	sector := int(binary.BigEndian.Uint16(buf[102:]))
	if sector < 512 || sector > 32768 || sector&(sector-1) != 0 {
		return Superblock{}, fmt.Errorf("%w: sector size %d", ErrDamaged, sector)
	}
	if sector > len(buf) {
		buf = make([]byte, sector)
		if n, err := r.ReadAt(buf, 0); n < len(buf) {
			return Superblock{}, fmt.Errorf("%w: only %d bytes: %w", ErrDamaged, n, err)
		}
	}
	if v := binary.BigEndian.Uint16(buf[100:]) & 0xf; v != 5 {
		return Superblock{}, fmt.Errorf("%w: version %d, want 5", ErrDamaged, v)
	}
	want := binary.LittleEndian.Uint32(buf[crcAt:])
	clear(buf[crcAt : crcAt+4])
	if crc32.Checksum(buf, crc32.MakeTable(crc32.Castagnoli)) != want {
		return Superblock{}, fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	s := Superblock{
		Label:     string(bytes.TrimRight(buf[108:120], "\x00")),
		DataBytes: int64(binary.BigEndian.Uint64(buf[8:])) * int64(binary.BigEndian.Uint32(buf[4:])),

		Unfinished: buf[126] != 0, // sb_inprogress
	}
	copy(s.UUID[:], buf[32:48])
	if s.DataBytes <= 0 {
		return Superblock{}, fmt.Errorf("%w: size %d", ErrDamaged, s.DataBytes)
	}
	return s, nil
}
