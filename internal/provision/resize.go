package provision

import (
	"context"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	resctl "github.com/kubernetes-csi/external-resizer/v2/pkg/controller"
	rescsi "github.com/kubernetes-csi/external-resizer/v2/pkg/csi"
	"github.com/kubernetes-csi/external-resizer/v2/pkg/modifier"
	"github.com/kubernetes-csi/external-resizer/v2/pkg/modifycontroller"
	"github.com/kubernetes-csi/external-resizer/v2/pkg/resizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/trace"
)

// expansion is external-resizer for one driver: resize, and VolumeAttributesClass modify where the driver has it.
type expansion struct {
	resize resctl.ResizeController
	modify modifycontroller.ModifyController
}

// newExpansion returns nil when the driver can neither resize nor modify.
func (r *role) newExpansion() (*expansion, error) {
	m := r.m
	client := &resizeClient{conn: r.conn, plugin: r.pluginCaps, controller: r.controllerCaps}
	f := factory{SharedInformerFactory: m.opts.Informers, scope: r.scope}
	x := &expansion{}
	if m.has(Resize) {
		rz, err := resizer.NewResizerFromClient(client, m.opts.RPCTimeout, m.opts.Client, r.driver.Name)
		switch {
		case err == nil:
			x.resize = resctl.NewResizeController(r.driver.Name, tracedResizer{rz, r}, m.opts.Client, 0, f, retries(), true, retrySlowly)
		case err != resizer.ResizeNotSupportErr:
			return nil, err
		}
	}
	if r.controllerCaps[csi.ControllerServiceCapability_RPC_MODIFY_VOLUME] && m.has(Modify) {
		md, err := modifier.NewModifierFromClient(client, m.opts.RPCTimeout, m.opts.Client, f, m.opts.ExtraModifyMetadata, r.driver.Name)
		if err != nil {
			return nil, err
		}
		f.claims = func(h cache.ResourceEventHandler) { r.modified = h }
		x.modify = modifycontroller.NewModifyController(r.driver.Name, tracedModifier{md, r}, m.opts.Client, 0, retrySlowly, m.opts.ExtraModifyMetadata, f, retries())
	}
	if x.resize == nil && x.modify == nil {
		return nil, nil
	}
	return x, nil
}

// retrySlowly is how long the libraries wait after an error that says "never" (InvalidArgument and the like). Upstream has
// 5 minutes; it is the longest wait of a user whose driver has changed its mind, of which nobody tells.
const retrySlowly = 20 * time.Second

func (x *expansion) run(ctx context.Context, workers int, wg *sync.WaitGroup) {
	if x == nil {
		return
	}
	if x.resize != nil {
		wg.Go(func() { x.resize.Run(workers, ctx, wg) })
	}
	if x.modify != nil {
		wg.Go(func() { x.modify.Run(workers, ctx, wg) })
	}
}

func (x *expansion) roles() (names []string) {
	if x.resize != nil {
		names = append(names, "resize")
	}
	if x.modify != nil {
		names = append(names, "modify")
	}
	return names
}

// tracedResizer records the journey around a resize.
type tracedResizer struct {
	resizer.Resizer
	r *role
}

func (t tracedResizer) Resize(pv *v1.PersistentVolume, size resource.Quantity) (resource.Quantity, bool, error) {
	e := trace.Entry{Step: trace.Expanded, State: trace.Began, Detail: "to " + size.String() + ", asking driver " + t.r.driver.Name, Claim: trace.ClaimOf(pv), Volume: pv.Name}
	key := pv.Name + "/" + size.String()
	if t.r.began.Add("resize/"+pv.Name, key) {
		t.r.m.opts.Trace.Record(e)
	}
	got, onNode, err := t.Resizer.Resize(pv, size)
	switch {
	case err != nil:
		if e.State, e.Detail = trace.Failed, words(err); !t.r.waiting.Add("resize/"+pv.Name, e.Detail) {
			return got, onNode, err
		}
	case onNode:
		e.State, e.Detail = trace.Waiting, "the driver grew the volume to "+got.String()+"; its filesystem grows on the node"
		fallthrough
	default:
		if !onNode {
			e.State, e.Detail = trace.Done, "to "+got.String()
		}
		t.r.began.Remove("resize/" + pv.Name)
		t.r.waiting.Remove("resize/" + pv.Name)
		t.r.capacity.changed()
	}
	t.r.m.opts.Trace.Record(e)
	return got, onNode, err
}

// resizeClient is external-resizer's connection to a driver; its own one exits the process when the connection is
// lost, and asks for the capabilities again with every resize.
type resizeClient struct {
	conn       *grpc.ClientConn
	plugin     rpc.PluginCapabilitySet
	controller rpc.ControllerCapabilitySet
}

var _ rescsi.Client = &resizeClient{}

func (c *resizeClient) GetDriverName(ctx context.Context) (string, error) {
	return rpc.GetDriverName(ctx, c.conn)
}

func (c *resizeClient) SupportsPluginControllerService(context.Context) (bool, error) {
	return c.plugin[csi.PluginCapability_Service_CONTROLLER_SERVICE], nil
}

func (c *resizeClient) SupportsControllerResize(context.Context) (bool, error) {
	return c.controller[csi.ControllerServiceCapability_RPC_EXPAND_VOLUME], nil
}

func (c *resizeClient) SupportsNodeResize(ctx context.Context) (bool, error) {
	answer, err := csi.NewNodeClient(c.conn).NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	if status.Code(err) == codes.Unimplemented {
		return false, nil // a controller on a socket of its own
	}
	if err != nil {
		return false, err
	}
	for _, have := range answer.GetCapabilities() {
		if have.GetRpc().GetType() == csi.NodeServiceCapability_RPC_EXPAND_VOLUME {
			return true, nil
		}
	}
	return false, nil
}

func (c *resizeClient) SupportsControllerModify(context.Context) (bool, error) {
	return c.controller[csi.ControllerServiceCapability_RPC_MODIFY_VOLUME], nil
}

func (c *resizeClient) SupportsControllerSingleNodeMultiWriter(context.Context) (bool, error) {
	return c.controller[csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER], nil
}

// Expand asks for at least size bytes; it returns the volume's size and whether the node must grow it too.
// boundary: held by the caller: the connection's interceptor (bounded).
func (c *resizeClient) Expand(ctx context.Context, volume string, size int64, secrets map[string]string, capability *csi.VolumeCapability) (int64, bool, error) {
	answer, err := csi.NewControllerClient(c.conn).ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: volume, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, Secrets: secrets, VolumeCapability: capability,
	})
	if err != nil {
		return 0, false, err
	}
	return answer.GetCapacityBytes(), answer.GetNodeExpansionRequired(), nil
}

// Modify changes a volume's mutable parameters. boundary: held by the caller: the connection's interceptor (bounded).
func (c *resizeClient) Modify(ctx context.Context, volume string, secrets, parameters map[string]string) error {
	_, err := csi.NewControllerClient(c.conn).ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{
		VolumeId: volume, Secrets: secrets, MutableParameters: parameters,
	})
	return err
}

// CloseConnection does nothing: the connection is the role's.
func (c *resizeClient) CloseConnection() {}
