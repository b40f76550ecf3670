package cluster

import (
	"errors"
	"strings"
	"testing"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
)

func TestChoose(t *testing.T) {
	with := func(node string, total, available int64) room {
		return room{node: node, Capacity: backend.Capacity{Total: total, Available: available}}
	}
	away := func(r room) room {
		r.away = "node " + r.node + " is not ready since noon"
		return r
	}
	two := []room{with("a", 100, 40), with("b", 100, 60)}
	for name, tc := range map[string]struct {
		rooms []room
		place backend.Place
		bytes int64
		tried map[string]bool
		want  string
		err   error
		says  string
	}{
		"most room":                            {rooms: two, bytes: 10, want: "b"},
		"the preferred one":                    {rooms: two, bytes: 10, place: backend.Place{Preferred: []string{"a", "b"}}, want: "a"},
		"the preferred one is full":            {rooms: two, bytes: 50, place: backend.Place{Preferred: []string{"a"}}, want: "b"},
		"the second of the preferred":          {rooms: []room{with("a", 9, 1), with("b", 9, 5), with("c", 9, 9)}, bytes: 4, place: backend.Place{Preferred: []string{"a", "b"}}, want: "b"},
		"only where it may be":                 {rooms: two, bytes: 10, place: backend.Place{Requisite: []string{"a"}}, want: "a"},
		"preferred, where it may not be":       {rooms: two, bytes: 10, place: backend.Place{Requisite: []string{"a"}, Preferred: []string{"b"}}, want: "a"},
		"full where it may be":                 {rooms: two, bytes: 50, place: backend.Place{Requisite: []string{"a"}}, err: backend.ErrNoSpace, says: "node a has 40 bytes available"},
		"tried already":                        {rooms: two, bytes: 10, tried: map[string]bool{"b": true}, want: "a"},
		"all tried":                            {rooms: two, bytes: 10, tried: map[string]bool{"a": true, "b": true}, err: backend.ErrNoSpace},
		"away":                                 {rooms: []room{away(with("a", 100, 90)), with("b", 100, 20)}, bytes: 10, want: "b"},
		"all away":                             {rooms: []room{away(with("a", 100, 90))}, bytes: 10, err: backend.ErrNoSpace, says: "not ready since noon"},
		"more than any pool":                   {rooms: two, bytes: 101, err: backend.ErrTooLarge},
		"more than any pool but the one away":  {rooms: []room{with("a", 50, 40), away(with("b", 200, 60))}, bytes: 101, err: backend.ErrNoSpace},
		"more than fits, less than a pool has": {rooms: two, bytes: 100, err: backend.ErrNoSpace},
		"no pools":                             {bytes: 1, err: backend.ErrNoSpace, says: "berth-node"},
		"no pool where it may be":              {rooms: two, bytes: 1, place: backend.Place{Requisite: []string{"c"}}, err: backend.ErrNoSpace, says: "node c"},
		"a pool that has not said its size":    {rooms: []room{with("a", 0, 0)}, bytes: 1, err: backend.ErrNoSpace},
	} {
		got, err := choose(tc.rooms, tc.place, tc.bytes, tc.tried)
		if got != tc.want || !errors.Is(err, tc.err) || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestAsked(t *testing.T) {
	spec := api.BlockVolumeSpec{Node: "a", Name: "n", SizeBytes: 100, LimitBytes: 200, FSType: "ext4", Parameters: map[string]api.Parameter{"access": "local"}}
	request := backend.CreateRequest{Name: "n", RequiredBytes: 100, LimitBytes: 200, FSType: "ext4", Parameters: map[string]string{"access": "local"}}
	for name, tc := range map[string]struct {
		change func(*api.BlockVolume, *backend.CreateRequest)
		differ bool
	}{
		"the same":                         {func(*api.BlockVolume, *backend.CreateRequest) {}, false},
		"another name":                     {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.Name = "m" }, true},
		"another filesystem":               {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.FSType = "xfs" }, true},
		"raw":                              {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.FSType = "" }, true},
		"another size of one that is made": {func(o *api.BlockVolume, r *backend.CreateRequest) { r.RequiredBytes = 150 }, true},
		// What it has counts then, which sized looks at.
		"another size of one that is there": {func(o *api.BlockVolume, r *backend.CreateRequest) {
			o.Status.Phase, r.RequiredBytes = api.PhaseReady, 150
		}, false},
		"no parameters":                {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.Parameters = nil }, true},
		"no parameters, on both sides": {func(o *api.BlockVolume, r *backend.CreateRequest) { o.Spec.Parameters, r.Parameters = nil, nil }, false},
		"from a snapshot":              {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.Source.SnapshotID = "s" }, true},
		"from the same snapshot": {func(o *api.BlockVolume, r *backend.CreateRequest) {
			o.Spec.Source, r.Source.SnapshotID = &api.BlockVolumeSource{Snapshot: "s"}, "s"
		}, false},
		"where it is":           {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.Place.Requisite = []string{"b", "a"} }, false},
		"elsewhere":             {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.Place.Requisite = []string{"b"} }, true},
		"elsewhere, preferably": {func(_ *api.BlockVolume, r *backend.CreateRequest) { r.Place.Preferred = []string{"b"} }, false},
	} {
		o, r := &api.BlockVolume{Spec: *spec.DeepCopy()}, request
		tc.change(o, &r)
		if err := asked(o, r); errors.Is(err, backend.ErrExists) != tc.differ || !tc.differ && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
