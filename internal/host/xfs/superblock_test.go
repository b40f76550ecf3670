package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
)

func superblock() []byte {
	b := make([]byte, 4096)
	copy(b, "XFSB")
	binary.BigEndian.PutUint32(b[4:], 4096)
	binary.BigEndian.PutUint64(b[8:], 1000)
	binary.BigEndian.PutUint16(b[100:], 5)
	binary.BigEndian.PutUint16(b[102:], 4096)
	copy(b[108:], "berth-pool")
	return sealed(b)
}

func sealed(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[224:], 0)
	binary.LittleEndian.PutUint32(b[224:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestReadSuperblock(t *testing.T) {
	s, err := ReadSuperblock(bytes.NewReader(superblock()))
	if err != nil || s.Label != "berth-pool" || s.DataBytes != 4096000 || s.Unfinished {
		t.Errorf("%+v, %v", s, err)
	}
	half := superblock()
	half[126] = 1
	if s, err := ReadSuperblock(bytes.NewReader(sealed(half))); err != nil || !s.Unfinished {
		t.Errorf("a killed mkfs: %+v, %v", s, err)
	}
	broken := superblock()
	broken[9] ^= 1
	if _, err := ReadSuperblock(bytes.NewReader(broken)); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if _, err := ReadSuperblock(bytes.NewReader(superblock()[:1000])); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if _, err := ReadSuperblock(bytes.NewReader(make([]byte, 4096))); !errors.Is(err, ErrNoSuperblock) {
		t.Error(err)
	}
	if _, err := ReadSuperblock(bytes.NewReader(nil)); !errors.Is(err, ErrNoSuperblock) {
		t.Error(err)
	}
}

func FuzzReadSuperblock(f *testing.F) {
	f.Add(superblock())
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ReadSuperblock(bytes.NewReader(data)); err == nil && s.DataBytes <= 0 {
			t.Errorf("%+v", s)
		}
	})
}
