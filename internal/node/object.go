package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/boundary"
)

const (
	attachDetachAnnotation   = "volumes.kubernetes.io/controller-managed-attach-detach"
	keepTerminatedAnnotation = "volumes.kubernetes.io/keep-terminated-pod-volumes"
	// keepsInUseAnnotation promises the attach room that volumesInUse names every volume used here without a gap, over our
	// restarts, too (mount.Manager.VolumesInUse). The value is our version: it holds as long as the Node says that this
	// version is its agent.
	keepsInUseAnnotation = "storage.berth.io/keeps-volumes-in-use"

	// apiTimeout bounds each request to the API.
	apiTimeout = 15 * time.Second
	// lookAgain is how often the host's addresses and sizes are compared with the node's status. A comparison that
	// finds nothing writes nothing.
	lookAgain = 2 * time.Minute
)

// nodeObject keeps the Node object: makes or adopts it, puts right what is ours in it, and makes it again when it is
// deleted. Its UID is what CSINode and Lease are owned by.
type nodeObject struct {
	opts     *Options
	hostname string
	wake     chan struct{}

	mu      sync.Mutex
	current *v1.Node
	exists  chan struct{} // closed once the Node exists for the first time
	onUID   func(types.UID)
}

func newNodeObject(opts *Options) (*nodeObject, error) {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = opts.Node
	}
	n := &nodeObject{opts: opts, hostname: strings.ToLower(hostname), wake: make(chan struct{}, 1), exists: make(chan struct{})}
	_, err = opts.Informers.Core().V1().Nodes().Informer().AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			node, ok := obj.(*v1.Node)
			return ok && node.Name == opts.Node
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { n.seen(obj.(*v1.Node)) },
			UpdateFunc: func(_, obj any) { n.seen(obj.(*v1.Node)) },
			DeleteFunc: func(any) { n.poke() },
		},
	})
	return n, err
}

// seen keeps the newest Node, and wakes run when somebody else has changed what is ours in it.
func (n *nodeObject) seen(node *v1.Node) {
	n.mu.Lock()
	if n.current != nil && n.current.UID == node.UID && !newerVersion(node.ResourceVersion, n.current.ResourceVersion) {
		n.mu.Unlock()
		return
	}
	known := n.current != nil
	n.current = node
	n.mu.Unlock()
	if known && !readyNow(node) {
		n.poke()
	}
}

func (n *nodeObject) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// run keeps the Node and its Lease until ctx ends.
func (n *nodeObject) run(ctx context.Context) error {
	var leases sync.WaitGroup
	defer leases.Wait()
	first := true
	delay := backoff{base: 50 * time.Millisecond, limit: 10 * time.Second}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-again.C:
		}
		node, err := n.ensure(ctx)
		if err != nil {
			if ctx.Err() == nil {
				n.opts.Log.Warn("node object", "err", err)
			}
			again.Reset(delay.next())
			continue
		}
		delay.reset()
		again.Reset(lookAgain)
		if first {
			first = false
			close(n.exists)
			leases.Go(func() { (&lease{opts: n.opts, uid: node.UID}).run(ctx) })
		}
		if n.onUID != nil {
			n.onUID(node.UID)
		}
	}
}

// ensure makes the Node, or puts right what differs, in one request.
func (n *nodeObject) ensure(ctx context.Context) (*v1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	nodes := n.opts.Client.CoreV1().Nodes()
	old, err := nodes.Get(ctx, n.opts.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		node := n.describe(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.opts.Node}})
		// The mount room keeps it from now on. Until its first patch an empty list would let mounted volumes be detached.
		node.Status.VolumesInUse = n.opts.Mount.VolumesInUse()
		err = boundary.Do("node/create-node", func() error {
			node, err = nodes.Create(ctx, node, metav1.CreateOptions{})
			return err
		})
		return n.keep(node, err, "create")
	}
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", n.opts.Node, err)
	}
	wanted := n.describe(old.DeepCopy())
	if equality.Semantic.DeepEqual(old, wanted) {
		return n.keep(old, nil, "read")
	}
	patch, err := nodePatch(old, wanted)
	if err != nil {
		return nil, err
	}
	var node *v1.Node
	err = boundary.Do("node/write-node", func() error {
		// The status subresource takes metadata too (as upstream's PatchNodeStatus): one write for both.
		node, err = nodes.Patch(ctx, n.opts.Node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	return n.keep(node, err, "write")
}

func (n *nodeObject) keep(node *v1.Node, err error, verb string) (*v1.Node, error) {
	if err != nil {
		return nil, fmt.Errorf("%s node %s: %w", verb, n.opts.Node, err)
	}
	n.mu.Lock()
	n.current = node
	n.mu.Unlock()
	return node, nil
}

// get returns the newest Node seen; nil before the first.
func (n *nodeObject) get() *v1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// describe puts what is ours into node, and leaves everything else.
func (n *nodeObject) describe(node *v1.Node) *v1.Node {
	host := inspect(n.opts.DataDir, n.hostname, n.opts.Version)
	if node.Labels == nil {
		node.Labels = map[string]string{}
	}
	node.Labels[v1.LabelHostname] = n.opts.Node
	node.Labels[v1.LabelOSStable] = runtime.GOOS
	node.Labels[v1.LabelArchStable] = runtime.GOARCH
	if node.Annotations == nil {
		node.Annotations = map[string]string{}
	}
	if n.opts.AttachOnNode {
		delete(node.Annotations, attachDetachAnnotation)
	} else {
		node.Annotations[attachDetachAnnotation] = "true"
	}
	node.Annotations[keepsInUseAnnotation] = host.info.KubeletVersion
	s := &node.Status
	s.Capacity = keepEqual(s.Capacity, host.capacity)
	s.Allocatable = keepEqual(s.Allocatable, host.capacity)
	s.Addresses = host.addresses
	s.NodeInfo = host.info
	for _, c := range conditions {
		setNodeCondition(s, c)
	}
	return node
}

// conditions are the kubelet's; a holder puts no pressure on anything.
var conditions = []v1.NodeCondition{
	{Type: v1.NodeMemoryPressure, Status: v1.ConditionFalse, Reason: "HoldersUseNoMemory", Message: "holder: no containers run here"},
	{Type: v1.NodeDiskPressure, Status: v1.ConditionFalse, Reason: "NotMeasured", Message: "holder: no images and no container filesystems are kept here"},
	{Type: v1.NodePIDPressure, Status: v1.ConditionFalse, Reason: "HoldersUseNoProcess", Message: "holder: no containers run here"},
	{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "NodeAgentReady", Message: "holder: no container runtime"},
}

// setNodeCondition writes c only when it differs, so that a status that says the same is not written again.
func setNodeCondition(s *v1.NodeStatus, c v1.NodeCondition) {
	now := metav1.Now()
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return
		}
		c.LastHeartbeatTime, c.LastTransitionTime = now, old.LastTransitionTime
		if old.Status != c.Status {
			c.LastTransitionTime = now
		}
		*old = c
		return
	}
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	s.Conditions = append(s.Conditions, c)
}

func readyNow(node *v1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// keepEqual prefers the old list when it says the same in other words ("16Gi"), so that no write follows.
func keepEqual(old, now v1.ResourceList) v1.ResourceList {
	merged := old.DeepCopy()
	if merged == nil {
		merged = v1.ResourceList{}
	}
	for name, q := range now {
		if was, ok := old[name]; !ok || was.Cmp(q) != 0 {
			merged[name] = q
		}
	}
	return merged
}

// nodePatch is a strategic merge patch from old to wanted. status.addresses is annotated as a list to merge by type,
// which loses or keeps entries that it should not (upstream's PatchNodeStatus works around it too), so it is replaced whole.
func nodePatch(old, wanted *v1.Node) ([]byte, error) {
	replace := len(old.Status.Addresses) > 0 && !equality.Semantic.DeepEqual(old.Status.Addresses, wanted.Status.Addresses)
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	addresses := wanted.Status.Addresses
	if replace {
		wanted = wanted.DeepCopy()
		wanted.Status.Addresses = old.Status.Addresses
	}
	after, err := json.Marshal(wanted)
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Node{})
	if err != nil || !replace {
		return patch, err
	}
	tree := map[string]any{}
	if err := json.Unmarshal(patch, &tree); err != nil {
		return nil, err
	}
	status, ok := tree["status"].(map[string]any)
	if !ok {
		status = map[string]any{}
		tree["status"] = status
	}
	list := []any{map[string]string{"$patch": "replace"}}
	for _, a := range addresses {
		list = append(list, a)
	}
	status["addresses"] = list
	return json.Marshal(tree)
}
