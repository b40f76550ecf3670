package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

const (
	nodeIDAnnotation = "csi.volume.kubernetes.io/nodeid"
	// removalPause lets a plugin that replaces its socket come back before its entry is taken out.
	removalPause = 100 * time.Millisecond
)

// csiNode publishes the registered drivers: their entries in CSINode, their topology as labels of the Node, their node
// IDs in its annotation. Changes that come while a write is under way are written together by the next one; what is
// already so is not written.
type csiNode struct {
	opts *Options
	node *nodeObject
	wake chan struct{}

	mu      sync.Mutex
	owned   bool // owner is known
	owner   types.UID
	drivers map[string]driver
	gone    map[string]bool
	waiters map[string][]chan error
	current *storagev1.CSINode // as last read or written; nil: read it
}

func newCSINode(opts *Options, node *nodeObject) *csiNode {
	return &csiNode{
		opts: opts, node: node, wake: make(chan struct{}, 1),
		drivers: map[string]driver{}, gone: map[string]bool{}, waiters: map[string][]chan error{},
	}
}

// setOwner says which Node owns the CSINode. A new UID means that the Node was made again: everything is published again.
func (c *csiNode) setOwner(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owned && c.owner == uid {
		return
	}
	c.owned, c.owner, c.current = true, uid, nil
	c.poke()
}

func (c *csiNode) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// add publishes d, and returns when it stands in the API or was refused.
func (c *csiNode) add(ctx context.Context, d driver) error {
	done := make(chan error, 1)
	name := d.node.Name
	c.mu.Lock()
	c.drivers[name] = d
	delete(c.gone, name)
	c.waiters[name] = append(c.waiters[name], done)
	c.mu.Unlock()
	c.poke()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remove takes the driver's entry out, soon.
func (c *csiNode) remove(name string) {
	c.mu.Lock()
	delete(c.drivers, name)
	c.gone[name] = true
	c.mu.Unlock()
	time.AfterFunc(removalPause, c.poke)
}

func (c *csiNode) run(ctx context.Context) {
	delay := backoff{base: 20 * time.Millisecond, limit: 30 * time.Second}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-again:
		}
		again = nil
		if err := c.publish(ctx); err != nil {
			if ctx.Err() == nil {
				c.opts.Log.Warn("CSINode", "err", err)
			}
			again = time.After(delay.next())
			continue
		}
		delay.reset()
	}
}

// publish writes what is wanted, and answers those who wait.
func (c *csiNode) publish(ctx context.Context) error {
	c.mu.Lock()
	if !c.owned {
		c.mu.Unlock()
		return nil // setOwner wakes
	}
	wanted, gone, waiters := maps.Clone(c.drivers), c.gone, c.waiters
	c.gone, c.waiters = map[string]bool{}, map[string][]chan error{}
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	refused := c.writeNode(ctx, wanted, gone)
	for name := range refused {
		delete(wanted, name)
	}
	err := c.writeCSINode(ctx, wanted, gone)
	if apierrors.IsInvalid(err) {
		// One entry that the API refuses must not keep the others out: write them one by one.
		for name := range waiters {
			if d, ok := wanted[name]; ok && refused[name] == nil {
				if one := c.writeCSINode(ctx, map[string]driver{name: d}, nil); one != nil {
					refused[name] = one
				}
			}
		}
		err = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, list := range waiters {
		outcome := refused[name]
		if outcome == nil {
			outcome = err
		}
		if outcome != nil {
			delete(c.drivers, name) // its registrar asks again
		}
		for _, done := range list {
			done <- outcome
		}
	}
	if err != nil {
		for name := range gone {
			if _, back := c.drivers[name]; !back {
				c.gone[name] = true
			}
		}
	}
	return err
}

// writeNode puts labels and the annotation into the Node. It returns the drivers that cannot be had, with the reason.
func (c *csiNode) writeNode(ctx context.Context, wanted map[string]driver, gone map[string]bool) map[string]error {
	refused := map[string]error{}
	all := func(err error) map[string]error {
		for name := range wanted {
			refused[name] = err
		}
		return refused
	}
	node := c.node.get()
	if node == nil {
		return all(errors.New("the node object is not there yet"))
	}
	ids := map[string]string{}
	if text := node.Annotations[nodeIDAnnotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &ids); err != nil {
			ids = map[string]string{} // somebody's rubbish: written anew
		}
	}
	before := maps.Clone(ids)
	for name := range gone {
		delete(ids, name)
	}
	labels := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		d := wanted[name]
		if err := collision(node.Labels, labels, d.topology); err != nil {
			refused[name] = fmt.Errorf("driver %s: %w", name, err)
			continue
		}
		ids[name] = d.node.NodeID
		for k, v := range d.topology {
			if node.Labels[k] != v {
				labels[k] = v
			}
		}
	}
	if maps.Equal(before, ids) && len(labels) == 0 {
		return refused
	}
	if err := c.patchNode(ctx, ids, labels); err != nil {
		return all(err)
	}
	return refused
}

// collision: two drivers, or a driver and the administrator, give one label different values (upstream refuses too).
func collision(have, others, topology map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(topology)) {
		for _, labels := range []map[string]string{have, others} {
			if v, ok := labels[k]; ok && v != topology[k] {
				return fmt.Errorf("topology %s=%s collides with the node's label %s=%s", k, topology[k], k, v)
			}
		}
	}
	return nil
}

func (c *csiNode) patchNode(ctx context.Context, ids, labels map[string]string) error {
	var annotation any // null removes it
	if len(ids) > 0 {
		text, err := json.Marshal(ids)
		if err != nil {
			return err
		}
		annotation = string(text)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": labels, "annotations": map[string]any{nodeIDAnnotation: annotation},
	}})
	if err != nil {
		return err
	}
	var node *v1.Node
	err = boundary.Do("node/write-driver-labels", func() error {
		node, err = c.opts.Client.CoreV1().Nodes().Patch(ctx, c.opts.Node, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("write the drivers' labels to node %s: %w", c.opts.Node, err)
	}
	c.node.seen(node)
	return nil
}

// writeCSINode brings the CSINode's entries to wanted, leaving those of drivers that are neither wanted nor gone: they
// may be about to register again after a restart.
func (c *csiNode) writeCSINode(ctx context.Context, wanted map[string]driver, gone map[string]bool) error {
	for attempt := 0; ; attempt++ {
		object, err := c.object(ctx)
		if err == nil {
			entries, whole := mergeDrivers(object.Spec.Drivers, wanted, gone)
			if sameDrivers(object.Spec.Drivers, entries) {
				return nil
			}
			object = object.DeepCopy()
			object.Spec.Drivers = entries
			if err = c.update(ctx, object); err == nil && whole {
				return nil
			}
		}
		if err != nil {
			c.mu.Lock()
			c.current = nil
			c.mu.Unlock()
			if !apierrors.IsConflict(err) || attempt > 4 {
				return err
			}
		}
	}
}

func (c *csiNode) update(ctx context.Context, object *storagev1.CSINode) error {
	err := boundary.Do("node/write-csinode", func() (err error) {
		object, err = c.opts.Client.StorageV1().CSINodes().Update(ctx, object, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("write CSINode %s: %w", c.opts.Node, err)
	}
	c.mu.Lock()
	c.current = object
	c.mu.Unlock()
	return nil
}

// object returns the CSINode that our Node owns: the one last written, or read, or made. One that an earlier Node of
// the name owned is replaced.
func (c *csiNode) object(ctx context.Context) (*storagev1.CSINode, error) {
	c.mu.Lock()
	object, owner := c.current, c.owner
	c.mu.Unlock()
	if object != nil {
		return object, nil
	}
	csiNodes := c.opts.Client.StorageV1().CSINodes()
	object, err := csiNodes.Get(ctx, c.opts.Node, metav1.GetOptions{})
	if err == nil && !ownedBy(object, owner) {
		uid := object.UID
		err = boundary.Do("node/delete-stale-csinode", func() error {
			return csiNodes.Delete(ctx, c.opts.Node, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("delete the CSINode of an earlier node %s: %w", c.opts.Node, err)
		}
		object, err = nil, apierrors.NewNotFound(storagev1.Resource("csinodes"), c.opts.Node)
	}
	if apierrors.IsNotFound(err) {
		object = &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{
			Name:            c.opts.Node,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: c.opts.Node, UID: owner}},
		}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{}}}
		err = boundary.Do("node/create-csinode", func() error {
			object, err = csiNodes.Create(ctx, object, metav1.CreateOptions{})
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("CSINode %s: %w", c.opts.Node, err)
	}
	c.mu.Lock()
	c.current = object
	c.mu.Unlock()
	return object, nil
}

func ownedBy(object *storagev1.CSINode, owner types.UID) bool {
	return slices.ContainsFunc(object.OwnerReferences, func(r metav1.OwnerReference) bool {
		return r.Kind == "Node" && r.UID == owner
	})
}

// mergeDrivers returns the new list, and whether it is all that is wanted: the API does not let an entry's ID or
// topology change, so such an entry is taken out first and comes back with the next write.
func mergeDrivers(have []storagev1.CSINodeDriver, wanted map[string]driver, gone map[string]bool) ([]storagev1.CSINodeDriver, bool) {
	list, whole := []storagev1.CSINodeDriver{}, true
	missing := maps.Clone(wanted)
	for _, entry := range have {
		d, ok := wanted[entry.Name]
		delete(missing, entry.Name)
		switch {
		case gone[entry.Name] && !ok:
		case !ok:
			list = append(list, entry)
		case entry.NodeID != d.node.NodeID || !sameKeys(entry.TopologyKeys, d.node.TopologyKeys):
			whole = false
		default:
			list = append(list, d.node)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		list = append(list, wanted[name].node)
	}
	return list, whole
}

func sameKeys(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func sameDrivers(a, b []storagev1.CSINodeDriver) bool {
	return slices.EqualFunc(a, b, func(x, y storagev1.CSINodeDriver) bool {
		return x.Name == y.Name && x.NodeID == y.NodeID && sameKeys(x.TopologyKeys, y.TopologyKeys) && reflect.DeepEqual(x.Allocatable, y.Allocatable)
	})
}
