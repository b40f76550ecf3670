package retention

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm wakes at a time of the clock on the wall, and whenever that clock is set. A timer of Go's counts the seconds that
// the machine runs: set for an hour ahead it would come an hour late when the machine sleeps meanwhile, and know nothing of
// a clock that jumps.
type alarm struct{ f *os.File }

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// farAhead is set when there is nothing to wait for: the clock's being set is to be noticed all the same.
var farAhead = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// set replaces the time to wake at.
func (a *alarm) set(at time.Time) error {
	if at.IsZero() || at.After(farAhead) {
		at = farAhead
	}
	spec := unix.ItimerSpec{Value: unix.Timespec{Sec: max(at.Unix(), 1), Nsec: int64(at.Nanosecond())}}
	conn, err := a.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &spec, nil)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("set the timer to %s: %w", at.Format(time.RFC3339), err)
	}
	return nil
}

// run calls wake each time the alarm goes off, until ctx ends.
func (a *alarm) run(ctx context.Context, wake func()) error {
	defer context.AfterFunc(ctx, func() { _ = a.f.Close() })()
	b := make([]byte, binary.Size(uint64(0)))
	for {
		_, err := a.f.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ECANCELED): // the clock was set
			return fmt.Errorf("wait for the timer: %w", err)
		}
		wake()
	}
}
