package attach

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

const (
	annManaged         = "volumes.kubernetes.io/controller-managed-attach-detach"
	annKeepsTerminated = "volumes.kubernetes.io/keep-terminated-pod-volumes"
	// annKeepsUse is the promise of a node's agent to report every volume that it uses in volumesInUse without a gap, over
	// its restarts, too. Its value is the agent's version as in status.nodeInfo.kubeletVersion: another agent that takes over the
	// Node writes its own version there and is not bound by what its predecessor promised.
	annKeepsUse = "storage.berth.io/keeps-volumes-in-use"
)

// node is what is known of a Node. Guarded by Controller.mu.
type node struct {
	exists          bool
	managed         bool
	keepsTerminated bool
	keepsUse        bool // see annKeepsUse
	ready           bool
	outOfService    bool
	evidence        string
	inUse           map[v1.UniqueVolumeName]bool
	attached        []v1.AttachedVolume // as the API has it
	version         uint64              // resourceVersion of what is known
}

// says reports whether the API has exactly this list.
func (n *node) says(list []v1.AttachedVolume) bool {
	return slices.Equal(n.attached, list)
}

func (c *Controller) node(name types.NodeName) *node {
	n := c.nodes[name]
	if n == nil {
		n = &node{}
		c.nodes[name] = n
	}
	return n
}

// nodeChanged takes over what an event says.
func (c *Controller) nodeChanged(o *v1.Node, gone bool) {
	name := types.NodeName(o.Name)
	c.mu.Lock()
	pods := c.adopt(o, gone)
	if n := c.nodes[name]; n != nil && n.managed && !n.says(c.toReport(name)) {
		c.nodeQueue.Add(name) // the node object was made anew, or somebody wrote over it
	}
	if gone && len(c.byNode[name]) == 0 {
		delete(c.nodes, name)
	}
	c.mu.Unlock()
	if pods {
		for _, p := range c.podsOn(name) {
			c.podQueue.Add(p)
		}
	}
}

// adopt takes over a node's state, from an event or from the answer to a request of our own, and wakes the volumes that
// it matters to. Whichever tells first wakes: the other finds nothing new. It reports whether the node's pods must be
// looked at again. Called locked.
func (c *Controller) adopt(o *v1.Node, gone bool) (pods bool) {
	name := types.NodeName(o.Name)
	n := c.node(name)
	version, _ := strconv.ParseUint(o.ResourceVersion, 10, 64)
	if !gone && n.exists && version < n.version {
		return false // older than what is known
	}
	var evidence string
	if c.opts.Evidence != nil && !gone {
		evidence = c.opts.Evidence(o)
	}
	before := *n
	c.learn(n, o, gone, evidence)
	whole := before.exists != n.exists || before.ready != n.ready || before.outOfService != n.outOfService ||
		before.evidence != n.evidence || before.managed != n.managed
	for volume, e := range c.byNode[name] {
		if whole || before.inUse[volume] != n.inUse[volume] {
			c.keyQueue.Add(e.key)
		}
	}
	return before.managed != n.managed || before.keepsTerminated != n.keepsTerminated
}

func (c *Controller) learn(n *node, o *v1.Node, gone bool, evidence string) {
	if gone {
		// The object says nothing about the machine, whose agent makes it again, with pods that run and volumes that are
		// mounted. What was known holds until the pods have gone, and unmounts are waited for as for any lost node.
		*n = node{managed: n.managed, keepsTerminated: n.keepsTerminated, inUse: n.inUse}
		return
	}
	version, _ := strconv.ParseUint(o.ResourceVersion, 10, 64)
	*n = node{exists: true, version: version, evidence: evidence, inUse: map[v1.UniqueVolumeName]bool{}, attached: o.Status.VolumesAttached,
		keepsTerminated: o.Annotations[annKeepsTerminated] == "true"}
	_, n.managed = o.Annotations[annManaged]
	promise := o.Annotations[annKeepsUse]
	n.keepsUse = promise != "" && promise == o.Status.NodeInfo.KubeletVersion
	for _, t := range o.Spec.Taints {
		n.outOfService = n.outOfService || t.Key == v1.TaintNodeOutOfService
	}
	for _, cond := range o.Status.Conditions {
		n.ready = n.ready || cond.Type == v1.NodeReady && cond.Status == v1.ConditionTrue
	}
	for _, v := range o.Status.VolumesInUse {
		n.inUse[v] = true
	}
}

// toReport is what node.status.volumesAttached must say, by name.
func (c *Controller) toReport(name types.NodeName) []v1.AttachedVolume {
	list := []v1.AttachedVolume{}
	for _, e := range c.byNode[name] {
		if e.reported {
			list = append(list, v1.AttachedVolume{Name: e.key.volume, DevicePath: e.devicePath})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// writeNode persists node.status.volumesAttached. The queue lets one write per node run at a time; whatever changes
// meanwhile goes with the next.
func (c *Controller) writeNode(ctx context.Context, name types.NodeName) error {
	c.mu.Lock()
	list := c.toReport(name)
	if n := c.nodes[name]; n == nil || !n.managed || n.says(list) {
		c.settleWrite(name)
		c.mu.Unlock()
		return nil
	}
	var carried []*entry // what this write makes true
	for _, e := range c.byNode[name] {
		if e.persists {
			carried = append(carried, e)
		}
	}
	reported := make([]bool, len(carried))
	for i, e := range carried {
		reported[i] = e.reported
	}
	c.mu.Unlock()

	patch, err := json.Marshal(map[string]any{"status": map[string]any{"volumesAttached": list}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	var written *v1.Node
	err = boundary.Do("attach/write-volumes-attached", func() error {
		written, err = c.opts.Client.CoreV1().Nodes().Patch(ctx, string(name), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if apierrors.IsNotFound(err) {
		c.settleWrite(name)
		return nil
	}
	if err != nil {
		c.opts.Log.Warn("cannot write node.status.volumesAttached", "node", name, "err", err)
		return fmt.Errorf("write volumesAttached of node %s: %w", name, err)
	}
	c.adopt(written, false)
	for i, e := range carried {
		if e.reported == reported[i] {
			e.persists = false
			e.unlisted = !e.reported
			c.keyQueue.Add(e.key)
		}
	}
	return nil
}

// settleWrite: there is nothing to write, or nobody to write to, so nothing waits for it.
func (c *Controller) settleWrite(name types.NodeName) {
	for _, e := range c.byNode[name] {
		if e.persists {
			e.persists = false
			c.keyQueue.Add(e.key)
		}
	}
}
