package fsmount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/command"
)

// Errors of logical volumes.
var (
	ErrNoGroup  = errors.New("the volume group is not on this machine")
	ErrNoVolume = errors.New("the volume group has no such logical volume")
)

// lvmDeadline bounds one command of LVM, which waits for others' locks and scans the disks.
const lvmDeadline = time.Minute

// unformatted is the tag of a volume that was made here and has no filesystem yet. While it is there, nobody has had the volume.
const unformatted = "berth.unformatted"

// ownNames are parts of names that LVM keeps for itself (lvm(8), "Reserved names").
var ownNames = strings.Fields(`_cdata _cmeta _corig _cpool _cvol _wcorig _mimage _mlog _rimage _rmeta _tdata _tmeta _vdata _vorigin
	_pmspare _imeta _iorig`)

// LogicalVolume is one of LVM's.
type LogicalVolume struct{ group, name string }

// ParseLogicalVolume checks names by LVM's rules (lvm(8), "Valid names"). The error is ErrName.
func ParseLogicalVolume(group, name string) (LogicalVolume, error) {
	if err := lvmName("volume group", group); err != nil {
		return LogicalVolume{}, err
	}
	if err := lvmName("logical volume", name); err != nil {
		return LogicalVolume{}, err
	}
	for _, reserved := range ownNames {
		if strings.Contains(name, reserved) {
			return LogicalVolume{}, fmt.Errorf("logical volume %q: %w: a name with %s is LVM's own", name, ErrName, reserved)
		}
	}
	if strings.HasPrefix(name, "snapshot") || strings.HasPrefix(name, "pvmove") {
		return LogicalVolume{}, fmt.Errorf("logical volume %q: %w: names that begin with snapshot or pvmove are LVM's own", name, ErrName)
	}
	v := LogicalVolume{group, name}
	if len(v.Mapping()) > 127 {
		return LogicalVolume{}, fmt.Errorf("logical volume %q: %w: with its group's, its name is longer than 127 bytes", name, ErrName)
	}
	return v, nil
}

func lvmName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s: %w: it is empty", what, ErrName)
	case len(s) > 127:
		return fmt.Errorf("%s: %w: it has %d bytes, a name has at most 127", what, ErrName, len(s))
	case s[0] == '-' || s == "." || s == "..":
		return fmt.Errorf("%s %q: %w", what, s, ErrName)
	}
	for _, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && c != '+' && c != '_' && c != '.' && c != '-' {
			return fmt.Errorf("%s %.80q: %w: a name has letters, digits and + _ . -", what, s, ErrName)
		}
	}
	return nil
}

// ParseSize reads a size as LVM and Kubernetes write it: a number and a unit, k, m, g, t or Ki, Mi, Gi, Ti, all powers of
// 1024 as lvcreate takes them. Without a unit it would be MiB for the one and bytes for the other, and is refused. The answer is
// rounded up to a MiB. The error is ErrName.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKmMgGtTiIbB")
	unit := strings.ToLower(s[len(digits):])
	shift, known := map[string]int{"k": 10, "ki": 10, "kib": 10, "m": 20, "mi": 20, "mib": 20, "g": 30, "gi": 30, "gib": 30, "t": 40, "ti": 40, "tib": 40}[unit]
	if !known {
		return 0, fmt.Errorf("size %.40q: %w: give a number and a unit, such as 1000m or 10Gi", s, ErrName)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > (1<<60)>>shift {
		return 0, fmt.Errorf("size %.40q: %w: give a whole number that is not 0 and a unit, such as 1000m or 10Gi", s, ErrName)
	}
	const mib = 1 << 20
	return (n<<shift + mib - 1) &^ (mib - 1), nil
}

// String is the name as LVM's tools take it.
func (v LogicalVolume) String() string { return v.group + "/" + v.name }

// Mapping is the name of its device-mapper device (libdevmapper's dm_build_dm_name): unlike group-name it cannot be two volumes.
func (v LogicalVolume) Mapping() string {
	return strings.ReplaceAll(v.group, "-", "--") + "-" + strings.ReplaceAll(v.name, "-", "--")
}

// DevicePath is where its device is while it is active.
func (v LogicalVolume) DevicePath() string { return filepath.Join("/dev", v.group, v.name) }

// uuidLength is that of a logical volume's device in device-mapper: LVM-, the group's id, the volume's. A pool's, or a part's of another
// volume, is longer (lib/activate/dev_manager.c, dm_build_dm_uuid with a layer).
const uuidLength = len("LVM-") + 32 + 32

// Device answers the path of its device, if it is active. It asks /dev and /sys alone, in microseconds. A path that is there and
// belongs to another device is none of it: `mapper` would be a fine name for a group.
func (v LogicalVolume) Device() (string, bool) {
	for _, path := range []string{v.DevicePath(), filepath.Join("/dev/mapper", v.Mapping())} {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		dm := fmt.Sprintf("/sys/dev/block/%d:%d/dm/", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		name, err1 := os.ReadFile(dm + "name")
		uuid, err2 := os.ReadFile(dm + "uuid")
		if err1 == nil && err2 == nil && strings.TrimSpace(string(name)) == v.Mapping() &&
			strings.HasPrefix(string(uuid), "LVM-") && len(strings.TrimSpace(string(uuid))) == uuidLength {
			return path, true
		}
	}
	return "", false
}

// Details is what LVM tells of a logical volume.
type Details struct {
	Bytes int64
	// Unformatted: it was made here, and no filesystem on it was ever finished.
	Unformatted bool
	// Open: somebody has its device open: a mount, a device on top, a process.
	Open bool
}

// Find asks LVM. ErrNoGroup, ErrNoVolume.
func (v LogicalVolume) Find(ctx context.Context) (Details, error) {
	rows, err := report(ctx, "lvs", "lv", "lv_size,lv_attr,lv_tags", fmt.Sprintf(`vg_name="%s" && lv_name="%s"`, v.group, v.name))
	if err != nil {
		return Details{}, err
	}
	if len(rows) == 0 {
		groups, err := report(ctx, "vgs", "vg", "vg_name", fmt.Sprintf(`vg_name="%s"`, v.group))
		if err == nil && len(groups) == 0 {
			err = fmt.Errorf("%s: %w", v.group, ErrNoGroup)
		}
		if err == nil {
			err = fmt.Errorf("%s: %w", v, ErrNoVolume)
		}
		return Details{}, err
	}
	return v.details(rows[0])
}

// details reads a row of lvs.
func (v LogicalVolume) details(row map[string]string) (Details, error) {
	attr := row["lv_attr"]
	// lvs(8), lv_attr: pools and their parts, images of mirrors and RAIDs, logs, merging snapshots.
	if attr != "" && strings.ContainsRune("tTdDeiIlpS", rune(attr[0])) {
		return Details{}, fmt.Errorf("%s is a pool or a part of another volume, not a volume (lv_attr %.40q)", v, attr)
	}
	size, err := strconv.ParseInt(row["lv_size"], 10, 64)
	if err != nil || size < 0 {
		return Details{}, fmt.Errorf("%s: LVM tells the size %.40q", v, row["lv_size"])
	}
	return Details{Bytes: size, Unformatted: has(row["lv_tags"], unformatted), Open: len(attr) > 5 && attr[5] == 'o'}, nil
}

// Wanted is the volume to make where there is none.
type Wanted struct {
	Bytes int64
	Pool  string // of thin volumes; "" for a linear one
}

// ParsePool checks a thin pool's name.
func ParsePool(s string) (string, error) { return s, lvmName("thin pool", s) }

// Activate makes the device appear, and answers its path. Where the volume group has no such volume and want is not nil, the volume is
// made. ErrNoGroup, ErrNoVolume.
func (v LogicalVolume) Activate(ctx context.Context, want *Wanted) (string, error) {
	if path, active := v.Device(); active {
		return path, nil
	}
	_, err := v.Find(ctx)
	if errors.Is(err, ErrNoVolume) && want != nil {
		if err = v.create(ctx, want); err != nil {
			if _, again := v.Find(ctx); again == nil { // another process made it meanwhile
				err = nil
			}
		}
	}
	if err != nil {
		return "", err
	}
	if path, active := v.Device(); active {
		return path, nil
	}
	// -K: a thin snapshot is left alone at boot, not when it is asked for.
	err = boundary.Do("fsmount/activate-volume", func() error { return lvm(ctx, "lvchange", "-K", "-ay", v.String()) })
	if err != nil {
		return "", fmt.Errorf("activate %s: %w", v, err)
	}
	path, active := v.Device()
	if !active {
		return "", fmt.Errorf("activate %s: LVM did so, and %s is not there; is udev running?", v, v.DevicePath())
	}
	return path, nil
}

// create makes the volume, with the tag that says that it holds nothing of anybody's.
func (v LogicalVolume) create(ctx context.Context, want *Wanted) error {
	size := strconv.FormatInt(want.Bytes, 10) + "b"
	args := []string{"lvcreate", "--yes", "--addtag", unformatted, "-n", v.name}
	if want.Pool == "" {
		args = append(args, "-Wy", "-Zy", "-L", size, v.group)
	} else {
		args = append(args, "-V", size, "--thinpool", want.Pool, v.group)
	}
	err := boundary.Do("fsmount/create-volume", func() error { return lvm(ctx, args...) })
	if err != nil {
		return fmt.Errorf("make %s of %d bytes: %w", v, want.Bytes, err)
	}
	return nil
}

// Formatted takes away the tag: from now on the volume is its user's.
func (v LogicalVolume) Formatted(ctx context.Context) error {
	err := boundary.Do("fsmount/mark-formatted", func() error { return lvm(ctx, "lvchange", "--deltag", unformatted, v.String()) })
	if err != nil {
		return fmt.Errorf("note that %s has its filesystem: %w", v, err)
	}
	return nil
}

// Extend makes the volume at least bytes large, and answers its size. It never shrinks one.
func (v LogicalVolume) Extend(ctx context.Context, bytes int64) (int64, error) {
	now, err := v.Find(ctx)
	if err != nil || now.Bytes >= bytes {
		return now.Bytes, err
	}
	const sector = 512
	size := strconv.FormatInt((bytes+sector-1)&^(sector-1), 10) + "b"
	failed := boundary.Do("fsmount/extend-volume", func() error { return lvm(ctx, "lvextend", "-L", size, v.String()) })
	now, err = v.Find(ctx)
	if err == nil && now.Bytes < bytes {
		err = failed // not where another process did it meanwhile
		if err == nil {
			err = fmt.Errorf("it has %d bytes still", now.Bytes)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("extend %s to %d bytes: %w", v, bytes, err)
	}
	return now.Bytes, nil
}

// report asks lvs or vgs. select is LVM's own language: what stands in it has been checked.
func report(ctx context.Context, program, section, fields, selection string) ([]map[string]string, error) {
	args := []string{program, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, "--select", selection}
	out, err := command.Output(ctx, lvmDeadline, nil, "lvm", append(args, withoutUdev()...)...)
	if err != nil {
		return nil, lvmError(err)
	}
	rows, err := parseReport(out, section)
	if err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", program, err)
	}
	return rows, nil
}

// parseReport reads what LVM's --reportformat json writes (lvmreport(7)): reports, each with rows by section, each value a text.
func parseReport(out, section string) (rows []map[string]string, err error) {
	var answer struct {
		Report []map[string][]map[string]string `json:"report"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, errors.New("it is not the JSON of LVM's reports")
	}
	for _, r := range answer.Report {
		for _, row := range r[section] {
			if row == nil {
				return nil, errors.New("a row of it is null")
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// lvm runs one command of LVM. boundary: held by the caller.
func lvm(ctx context.Context, args ...string) error {
	_, err := command.Output(ctx, lvmDeadline, nil, "lvm", append(args, withoutUdev()...)...)
	return lvmError(err)
}

func lvmError(err error) error {
	if errors.Is(err, command.ErrMissing) {
		return fmt.Errorf("%w: install the package lvm2", err)
	}
	return err
}

// withoutUdev tells LVM to make the devices' names itself where no udev does (a container): it would wait for it.
func withoutUdev() []string {
	if _, err := os.Stat("/run/udev/control"); err == nil {
		return nil
	}
	return []string{"--config", "devices{obtain_device_list_from_udev=0}activation{udev_sync=0 udev_rules=0}"}
}
