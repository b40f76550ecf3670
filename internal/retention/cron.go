package retention

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // a host may have no zone database

	"github.com/robfig/cron/v3"
)

var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// times are those of a cron expression.
type times struct {
	schedule cron.Schedule
	zone     *time.Location
	// every is not 0 for "@every": such times are counted from an origin, not read off the clock.
	every time.Duration
}

// parse reads a schedule and its time zone; the error is for a user.
func parse(schedule, zone string) (times, error) {
	schedule = strings.TrimSpace(schedule)
	if strings.Contains(schedule, "TZ=") {
		return times{}, errors.New("spec.schedule: a time zone belongs into spec.timeZone")
	}
	if zone == "" {
		zone = "UTC"
	}
	if zone == "Local" {
		return times{}, errors.New("spec.timeZone: Local is not a time zone; name one of the IANA database, such as Europe/Berlin")
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return times{}, fmt.Errorf("spec.timeZone: %q is not in the IANA database of time zones; want a name such as Europe/Berlin", zone)
	}
	if n := len(strings.Fields(schedule)); !strings.HasPrefix(schedule, "@") && n != 5 {
		return times{}, fmt.Errorf("spec.schedule: %q has %d fields and not 5 (minute, hour, day of month, month, day of week)", schedule, n)
	}
	s, err := parser.Parse(schedule)
	if err != nil {
		return times{}, fmt.Errorf("spec.schedule: %q is no cron expression: %w", schedule, err)
	}
	t := times{schedule: s, zone: loc}
	if c, ok := s.(cron.ConstantDelaySchedule); ok {
		// The parser rounds up to a second.
		if d, err := time.ParseDuration(strings.TrimSpace(strings.TrimPrefix(schedule, "@every"))); err != nil || d < time.Second {
			return times{}, fmt.Errorf("spec.schedule: %q: the shortest is @every 1s", schedule)
		}
		t.every = c.Delay
	} else if t.schedule.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, loc)).IsZero() {
		return times{}, fmt.Errorf("spec.schedule: %q never comes: there is no such day", schedule)
	}
	return t, nil
}

// next is the first time after from.
func (t times) next(from time.Time) time.Time {
	if t.every > 0 {
		return from.Add(t.every)
	}
	return t.schedule.Next(from.In(t.zone)).UTC()
}

// latest is the last time after from and not after now; zero when there is none. missed: there were others before it.
func (t times) latest(from, now time.Time) (at time.Time, missed bool) {
	if !from.Before(now) {
		return time.Time{}, false
	}
	if t.every > 0 {
		n := int64(now.Sub(from) / t.every)
		if n == 0 {
			return time.Time{}, false
		}
		return from.Add(time.Duration(n) * t.every), n > 1
	}
	// A machine may have been off for years: the last hour is looked at first, then the last day, and so on.
	for _, window := range []time.Duration{time.Hour, 24 * time.Hour, 32 * 24 * time.Hour, 366 * 24 * time.Hour, now.Sub(from)} {
		start := now.Add(-window)
		if start.Before(from) {
			start = from
		}
		for next := t.next(start); !next.IsZero() && !next.After(now); next = t.next(next) {
			at = next
		}
		if !at.IsZero() {
			return at, t.next(from).Before(at)
		}
		if start.Equal(from) {
			break
		}
	}
	return time.Time{}, false
}
