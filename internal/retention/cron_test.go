package retention

import (
	"strings"
	"testing"
	"time"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}

func TestParseRefusesInWords(t *testing.T) {
	for name, c := range map[string]struct{ schedule, zone, says string }{
		"words":                 {schedule: "every hour", says: "2 fields and not 5"},
		"seconds as a field":    {schedule: "0 0 * * * *", says: "6 fields and not 5"},
		"minute out of range":   {schedule: "61 * * * *", says: "61"},
		"a day that never is":   {schedule: "0 0 31 2 *", says: "never comes"},
		"half a second":         {schedule: "@every 500ms", says: "the shortest is @every 1s"},
		"negative":              {schedule: "@every -1h", says: "the shortest is @every 1s"},
		"no duration":           {schedule: "@every banana", says: "banana"},
		"unknown word":          {schedule: "@sometimes", says: "@sometimes"},
		"zone in the schedule":  {schedule: "TZ=Europe/Berlin 0 * * * *", says: "spec.timeZone"},
		"zone that is not":      {schedule: "@hourly", zone: "Mars/Olympus", says: "Mars/Olympus"},
		"zone of the machine":   {schedule: "@hourly", zone: "Local", says: "Local"},
		"zone out of its place": {schedule: "@hourly", zone: "../../etc/passwd", says: "IANA"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(c.schedule, c.zone); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v does not say %q", err, c.says)
			}
		})
	}
}

func TestLatestTime(t *testing.T) {
	for name, c := range map[string]struct {
		schedule, zone, from, now, latest string
		missed                            bool
	}{
		"none yet":                    {schedule: "@hourly", from: "2026-01-01T10:00:00Z", now: "2026-01-01T10:59:59Z"},
		"just now":                    {schedule: "@hourly", from: "2026-01-01T10:00:00Z", now: "2026-01-01T11:00:00Z", latest: "2026-01-01T11:00:00Z"},
		"three missed":                {schedule: "@hourly", from: "2026-01-01T10:00:00Z", now: "2026-01-01T14:10:00Z", latest: "2026-01-01T14:00:00Z", missed: true},
		"off for years":               {schedule: "0 3 1 1 *", from: "2020-06-01T00:00:00Z", now: "2026-05-05T00:00:00Z", latest: "2026-01-01T03:00:00Z", missed: true},
		"every counts from the start": {schedule: "@every 7m", from: "2026-01-01T10:00:00Z", now: "2026-01-01T10:22:00Z", latest: "2026-01-01T10:21:00Z", missed: true},
		"every second for a year":     {schedule: "@every 1s", from: "2025-01-01T00:00:00Z", now: "2026-01-01T00:00:00Z", latest: "2026-01-01T00:00:00Z", missed: true},
		"in Berlin":                   {schedule: "0 3 * * *", zone: "Europe/Berlin", from: "2026-01-01T00:00:00Z", now: "2026-01-01T04:00:00Z", latest: "2026-01-01T02:00:00Z"},
		"an hour that is left out":    {schedule: "30 2 29 3 *", zone: "Europe/Berlin", from: "2026-03-28T00:00:00Z", now: "2026-03-30T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			x, err := parse(c.schedule, c.zone)
			if err != nil {
				t.Fatal(err)
			}
			if got, missed := x.latest(at(c.from), at(c.now)); show(got) != c.latest || missed != c.missed {
				t.Errorf("latest is %v, others missed: %v", got, missed)
			}
		})
	}
}

// Whatever parses has a next time after each time, and the latest one is never in the future.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"*/5 * * * *", "@hourly", "@every 90s", "0 0 29 2 *", "@every 99999h", "0 0 1-31/2 */3 MON-FRI", "? ? ? ? ?"} {
		f.Add(s, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, schedule, zone string) {
		x, err := parse(schedule, zone)
		if err != nil {
			return
		}
		now := at("2026-07-01T12:00:00Z")
		if next := x.next(now); !next.IsZero() && !next.After(now) {
			t.Errorf("%q: the next time after %v is %v", schedule, now, next)
		}
		if last, _ := x.latest(now.Add(-90*24*time.Hour), now); last.After(now) {
			t.Errorf("%q: the latest time is %v, after %v", schedule, last, now)
		}
	})
}
