package block

import (
	"fmt"
	"maps"
	"slices"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/filesystem"
)

// DefaultBytes is the size of a volume for which no size is asked.
const DefaultBytes = int64(1) << 30

// parameterAccess of a StorageClass decides from where volumes can be used. "local" is this node alone.
const parameterAccess = "access"

// CheckParameters implements backend.Controller.
func (b *Backend) CheckParameters(parameters map[string]string) error {
	return CheckParameters(parameters)
}

// CheckParameters refuses parameters that no node's backend would take: ErrInvalid.
func CheckParameters(parameters map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		switch value := parameters[name]; {
		case name != parameterAccess:
			return fmt.Errorf("%w: unknown parameter %q (known: %s)", backend.ErrInvalid, name, parameterAccess)
		case value != "local":
			return fmt.Errorf("%w: parameter %s: %q is not served (local)", backend.ErrInvalid, name, value)
		}
	}
	return nil
}

// volumeSize decides the size from the request's range: at least what its filesystem needs, in whole units.
func volumeSize(r backend.CreateRequest) (int64, error) {
	var least int64 = pool.VolumeQuantum
	if r.FSType != "" {
		minimum, err := filesystem.MinimumBytes(r.FSType)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", backend.ErrInvalid, err)
		}
		least = minimum
	}
	if r.RequiredBytes < 0 || r.LimitBytes < 0 {
		return 0, fmt.Errorf("%w: a size of %d bytes (limit %d) is negative", backend.ErrInvalid, r.RequiredBytes, r.LimitBytes)
	}
	if r.LimitBytes > 0 && r.RequiredBytes > r.LimitBytes {
		return 0, fmt.Errorf("%w: %d bytes are required and %d are the limit", backend.ErrInvalid, r.RequiredBytes, r.LimitBytes)
	}
	size := r.RequiredBytes
	if size == 0 {
		size = DefaultBytes
		if r.LimitBytes > 0 {
			size = min(size, r.LimitBytes/pool.VolumeQuantum*pool.VolumeQuantum)
		}
	}
	if size < least {
		if r.LimitBytes > 0 && r.LimitBytes < least && r.FSType != "" {
			return 0, fmt.Errorf("%w: %s needs at least %d MiB, and the limit is %d bytes", backend.ErrTooLarge, r.FSType, least>>20, r.LimitBytes)
		}
		size = least
	}
	const most = int64(1) << 60
	if size > most {
		return 0, fmt.Errorf("%w: %d bytes", backend.ErrTooLarge, size)
	}
	size = pool.RoundSize(size)
	if r.LimitBytes > 0 && size > r.LimitBytes {
		return 0, fmt.Errorf("%w: volumes come in units of %d bytes, and the limit is %d", backend.ErrTooLarge, pool.VolumeQuantum, r.LimitBytes)
	}
	return size, nil
}

// compatible says whether a volume that is there is what is asked for.
func compatible(v pool.Volume, r backend.CreateRequest, size int64) error {
	differs := func(what string, have, want any) error {
		return fmt.Errorf("%w: volume %q has %s %v, and %v is asked for", backend.ErrExists, r.Name, what, have, want)
	}
	switch {
	case v.Name != r.Name:
		return differs("name", v.Name, r.Name)
	case v.SizeBytes < r.RequiredBytes || r.LimitBytes > 0 && v.SizeBytes > r.LimitBytes:
		return differs("size", v.SizeBytes, size)
	case v.FSType != r.FSType:
		return differs("filesystem", v.FSType, r.FSType)
	case v.Source != nil && *v.Source != pool.Source(r.Source), v.Source == nil && r.Source != (backend.Source{}):
		return fmt.Errorf("%w: volume %q is there, made from another source than is asked for", backend.ErrExists, r.Name)
	case !maps.Equal(v.Parameters, r.Parameters):
		return differs("parameters", v.Parameters, r.Parameters)
	}
	return nil
}
