package fsmount

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// ErrOccupied says that something else is mounted at the directory.
var ErrOccupied = errors.New("something else is mounted there")

func occupied(m *Mount, want string) error {
	what := m.Source
	if m.Root != "/" {
		what += " (its directory " + m.Root + ")"
	}
	return fmt.Errorf("mount %s at %s: %w: %s, %s", want, m.Path, ErrOccupied, what, m.FSType)
}

// sameAccess: a mount that is there may not be writable for one who asked for a read-only one. The other way round is the server's
// or the device's doing.
func sameAccess(m *Mount, readOnly bool) error {
	if readOnly && !m.ReadOnly {
		return fmt.Errorf("%s is mounted at %s: %w: it is writable, and is asked for read-only", m.Source, m.Path, ErrOccupied)
	}
	return nil
}

// mountShare makes the directory and places at it what detached answers.
func mountShare(ctx context.Context, root, below string, same func(*Mount) error, detached func(context.Context, *Target) (*os.File, error)) error {
	t, err := Make(root, below)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.place(ctx, same, func(ctx context.Context) (*os.File, error) { return detached(ctx, t) })
}
