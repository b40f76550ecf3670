package plugin

import "errors"

// ErrUncertain marks an error after which the outcome of a mount or unmount is unknown: the volume counts as mounted
// until an unmount has succeeded (gRPC Canceled, DeadlineExceeded, Unavailable, ResourceExhausted, Aborted and
// transport errors; FLOW: "uncertain").
var ErrUncertain = errors.New("outcome unknown")

// ErrDriverStarting says that the volume's driver may be there and has not said yet what it can do: wait for DriverNotifier.
var ErrDriverStarting = errors.New("driver is starting")
