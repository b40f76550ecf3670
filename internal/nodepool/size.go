package nodepool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"berth.io/berth/internal/boundary"
)

// Size returns the most that the default pool may take, in bytes; 0: the pool's own choice. What was asked for once
// holds for the starts after it, too, by the file at path: a pool must not outgrow its limit because one start came without the flag.
func Size(path, asked string) (int64, error) {
	if asked == "" {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		limit, err := ParseSize(strings.TrimSpace(string(b)))
		if err == nil && limit == 0 {
			err = errors.New("the file is empty")
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w; give --pool-size anew", path, err)
		}
		return limit, nil
	}
	limit, err := ParseSize(asked)
	if err != nil {
		return 0, fmt.Errorf("--pool-size: %w", err)
	}
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return 0, err
	}
	_, err = f.WriteString(asked + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return 0, fmt.Errorf("remember --pool-size: %w", err)
	}
	return limit, boundary.Do("nodepool/remember-size", func() error { return os.Rename(temp, path) })
}

// ParseSize reads a quantity such as 50Gi; empty is 0.
func ParseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 50Gi", text)
	}
	if q.Value() <= 0 {
		return 0, errors.New("must be greater than zero")
	}
	return q.Value(), nil
}
