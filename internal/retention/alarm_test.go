package retention

import (
	"context"
	"testing"
	"time"
)

// The alarm goes off at its time, can be set again, and ends with its context while nothing is due.
func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	rang, ended := make(chan time.Time, 4), make(chan error, 1)
	go func() { ended <- a.run(ctx, func() { rang <- time.Now() }) }()
	for range 2 {
		due := time.Now().Add(30 * time.Millisecond)
		if err := a.set(due); err != nil {
			t.Fatal(err)
		}
		select {
		case when := <-rang:
			if when.Before(due) {
				t.Errorf("it went off %s early", due.Sub(when))
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it never went off")
		}
	}
	if err := a.set(time.Time{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A time in the past goes off at once.
func TestAlarmOfThePast(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	rang := make(chan struct{}, 1)
	go func() { _ = a.run(t.Context(), func() { rang <- struct{}{} }) }()
	if err := a.set(time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-rang:
	case <-time.After(30 * time.Second):
		t.Fatal("it never went off")
	}
}
