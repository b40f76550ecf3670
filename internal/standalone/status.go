package standalone

import (
	"context"
	"fmt"
	"slices"
	"time"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/why"
)

// holders are the operations under way in every room, the oldest first.
func (in *instance) holders() []why.Holder {
	found := []why.Holder{}
	r := in.rooms
	for _, h := range r.provision.Holders() {
		found = append(found, why.Holder{Volume: h.Volume, Driver: h.Driver, Step: h.Step, Since: h.Since})
	}
	if r.attach != nil {
		for _, h := range r.attach.Holders() {
			volume := h.PV
			if volume == "" {
				volume = string(h.Volume)
			}
			found = append(found, why.Holder{Volume: volume, Step: h.Step, Since: h.Since})
		}
	}
	for _, c := range r.flexHost.Calls() {
		found = append(found, why.Holder{Volume: c.Volume, Driver: c.Driver, Step: c.CallOut, Since: c.Since})
	}
	for _, h := range r.mount.Holders() {
		volume := h.PV
		if volume == "" {
			volume = string(h.Volume)
		}
		found = append(found, why.Holder{Volume: volume, Step: string(h.Step), Pod: h.Pod.Namespace + "/" + h.Pod.Name, Since: h.Since})
	}
	if in.store != nil {
		for _, b := range in.store.Backend.Busy() {
			found = append(found, why.Holder{Volume: b.Volume, Driver: blockDriver, Step: b.Step, Since: b.Since})
		}
	}
	slices.SortStableFunc(found, func(a, b why.Holder) int { return a.Since.Compare(b.Since) })
	return found
}

// unwell are the mounted volumes whose drivers say that they are not well; not nil.
func (in *instance) unwell() []why.Unwell {
	found := []why.Unwell{}
	for _, u := range in.rooms.mount.Unwell() {
		found = append(found, why.Unwell{PV: u.PV, Claim: u.Claim, Pod: u.Pod, Name: u.Name, Problems: u.Problems, Since: u.Since})
	}
	return found
}

// status is what `berth status` prints.
func (in *instance) status(ctx context.Context) (*why.Status, error) {
	return why.Survey(ctx, why.StatusSources{
		Client: in.client, Components: in.components(), Pools: in.pools(), Holders: in.holders(), FlexVolumes: in.flexVolumes(), Unwell: in.unwell(), Notes: in.notes(), Now: time.Now(),
	})
}

func (in *instance) components() []why.Component {
	api := why.Component{Name: "berth-apiserver", Ready: in.healthy() == nil, Since: in.say.began,
		Detail: fmt.Sprintf("pid %d, %s", in.api.PID(), in.config.Host)}
	self := why.Component{Name: "berth", Ready: in.ready.is.Load(), Since: in.say.began, Detail: "version " + in.Version + ", " + in.Controllers + "'s volume controllers"}
	found := []why.Component{self, api}
	for _, d := range in.rooms.provision.Status() {
		if !d.Controller {
			continue
		}
		c := why.Component{Name: "provision " + d.Name, Ready: d.Ready, Since: d.Since, Detail: d.Err}
		if d.Err == "" {
			c.Detail = fmt.Sprint(d.Roles)
		}
		found = append(found, c)
	}
	for _, p := range in.rooms.agent.Status().Plugins {
		if p.Registered {
			continue
		}
		name := p.Name
		if name == "" {
			name = p.Socket
		}
		found = append(found, why.Component{Name: "plugin " + name, Since: p.Since, Detail: p.Error})
	}
	return found
}

func (in *instance) pools() []why.Pool {
	if in.Bare {
		return nil
	}
	c := in.store.Pool.Capacity()
	path := in.PoolDevice
	if path == "" {
		path = pool.ImagePath(in.dir.Pools(), "default")
	}
	p := why.Pool{Name: "default", Driver: blockDriver, Path: path, Size: c.Total, Used: c.Reserved, Available: c.Available,
		Volumes: len(in.store.Pool.List()), Detail: bytesText(c.Backed) + " taken from the disk"}
	return []why.Pool{p}
}

func (in *instance) notes() []string {
	if n := in.rooms.journal.Lost(); n > 0 {
		return []string{fmt.Sprintf("%d steps are missing from the journal: the disk was slower than they came", n)}
	}
	return nil
}
