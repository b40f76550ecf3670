// foreign is a CSI driver that has nothing of Berth in it: only the CSI specification, gRPC and the kubelet's
// registration protocol. The tests run it to see that a third party's driver works unchanged, and, with --fault, that
// one that hangs, crashes or answers rubbish holds up only its own volumes.
//
// A volume is a directory below --state; staging and publishing are bind mounts. With --data it also takes snapshots, of
// groups too, clones volumes and changes their attributes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedGroupControllerServer
	csi.UnimplementedNodeServer
	name, endpoint, state, node string
	attach, data                bool
	slow                        time.Duration
	secret                      string            // that CreateSnapshot wants
	faults                      map[string]string // RPC → hang | crash | rubbish | error
}

func main() {
	d := &driver{faults: map[string]string{}}
	var registry, faults string
	flag.StringVar(&d.name, "name", "foreign.example.com", "driver name")
	flag.StringVar(&d.endpoint, "endpoint", "", "path of the CSI socket")
	flag.StringVar(&registry, "registry", "", "plugins_registry directory")
	flag.StringVar(&d.state, "state", "", "where the volumes are")
	flag.StringVar(&d.node, "node", "node", "node id")
	flag.BoolVar(&d.attach, "attach", false, "offer PUBLISH_UNPUBLISH_VOLUME")
	flag.BoolVar(&d.data, "data", false, "offer snapshots, group snapshots, clones and MODIFY_VOLUME")
	flag.DurationVar(&d.slow, "slow", 0, "time from a snapshot taken to a snapshot ready to use")
	flag.StringVar(&d.secret, "secret", "", "refuse CreateSnapshot without a secret whose key is this")
	flag.StringVar(&faults, "fault", "", "RPC=hang|crash|rubbish|error, comma separated")
	flag.Parse()
	for f := range strings.SplitSeq(faults, ",") {
		if rpc, what, ok := strings.Cut(f, "="); ok {
			d.faults[rpc] = what
		}
	}
	if err := os.MkdirAll(d.state, 0o755); err != nil {
		log.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
	csi.RegisterIdentityServer(srv, d)
	csi.RegisterControllerServer(srv, d)
	csi.RegisterNodeServer(srv, d)
	csi.RegisterGroupControllerServer(srv, d)
	go serve(srv, d.endpoint)
	reg := grpc.NewServer()
	registration.RegisterRegistrationServer(reg, &registrar{d: d})
	serve(reg, filepath.Join(registry, d.name+"-reg.sock"))
}

func serve(s *grpc.Server, path string) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		log.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(s.Serve(l))
}

// registrar is what node-driver-registrar does.
type registrar struct {
	registration.UnimplementedRegistrationServer
	d *driver
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.d.name, Endpoint: r.d.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("registered: %v %s", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

// intercept plays the faults: hang until the caller gives up, die in the middle, answer what no driver may answer.
func (d *driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	rpc := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
	switch d.faults[rpc] {
	case "hang":
		time.Sleep(time.Hour) // also past the caller's cancellation: the worst that a driver can do
	case "crash":
		_, _ = next(ctx, req)
		os.Exit(7)
	case "error":
		return nil, status.Errorf(codes.Internal, "%s: the backend is on fire", rpc)
	case "rubbish":
		switch rpc {
		case "CreateVolume":
			return &csi.CreateVolumeResponse{}, nil
		case "GetPluginInfo":
			return &csi.GetPluginInfoResponse{Name: "../../etc/passwd"}, nil
		case "NodeGetInfo":
			return &csi.NodeGetInfoResponse{}, nil
		}
	}
	return next(ctx, req)
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "0.1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	types := []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE}
	if d.data {
		types = append(types, csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE)
	}
	r := &csi.GetPluginCapabilitiesResponse{}
	for _, t := range types {
		r.Capabilities = append(r.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return r, nil
}

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	types := []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}
	if d.attach {
		types = append(types, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	}
	if d.data {
		types = append(types, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
			csi.ControllerServiceCapability_RPC_CLONE_VOLUME, csi.ControllerServiceCapability_RPC_MODIFY_VOLUME)
	}
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range types {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return r, nil
}

var volumeID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,127}$`)

func (d *driver) path(id string) (string, error) {
	if !volumeID.MatchString(id) {
		return "", status.Errorf(codes.InvalidArgument, "volume id %q", id)
	}
	return filepath.Join(d.state, id), nil
}

func (d *driver) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	p, err := d.path(r.GetName())
	if err != nil {
		return nil, err
	}
	size := r.GetCapacityRange().GetRequiredBytes()
	volume := &csi.Volume{VolumeId: r.GetName(), CapacityBytes: size, ContentSource: r.GetVolumeContentSource()}
	if _, there := note[int64](p); there || !d.data {
		return &csi.CreateVolumeResponse{Volume: volume}, os.MkdirAll(p, 0o777)
	}
	if err := os.RemoveAll(p); err != nil { // half of a copy
		return nil, err
	}
	if err := d.modify(p, r.GetMutableParameters()); err != nil {
		return nil, err
	}
	if err := d.fill(p, r.GetVolumeContentSource()); err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: volume}, writeNote(p, size)
}

func (d *driver) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	p, err := d.path(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(p), os.RemoveAll(p+".json"), os.RemoveAll(p+".tier")); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *driver) ControllerPublishVolume(_ context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{"attached": r.GetNodeId()}}, nil
}

func (d *driver) ControllerUnpublishVolume(context.Context, *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node, MaxVolumesPerNode: 50}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{Capabilities: []*csi.NodeServiceCapability{{Type: &csi.NodeServiceCapability_Rpc{
		Rpc: &csi.NodeServiceCapability_RPC{Type: csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME}}}}}, nil
}

func (d *driver) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	p, err := d.path(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if d.attach && r.GetPublishContext()["attached"] != d.node {
		return nil, status.Errorf(codes.FailedPrecondition, "publish context %v", r.GetPublishContext())
	}
	if _, err := os.Stat(p); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s does not exist", r.GetVolumeId())
	}
	return &csi.NodeStageVolumeResponse{}, bind(p, r.GetStagingTargetPath(), false)
}

func (d *driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	return &csi.NodeUnstageVolumeResponse{}, unbind(r.GetStagingTargetPath(), false)
}

func (d *driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := os.MkdirAll(r.GetTargetPath(), 0o750); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodePublishVolumeResponse{}, bind(r.GetStagingTargetPath(), r.GetTargetPath(), r.GetReadonly())
}

func (d *driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	return &csi.NodeUnpublishVolumeResponse{}, unbind(r.GetTargetPath(), true)
}

func mounted(path string) bool {
	var self, parent unix.Stat_t
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil {
		return strings.Contains(string(b), " "+path+" ")
	}
	return unix.Stat(path, &self) == nil && unix.Stat(filepath.Dir(path), &parent) == nil && self.Dev != parent.Dev
}

func bind(from, to string, readOnly bool) error {
	if mounted(to) {
		return nil
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return status.Errorf(codes.Internal, "bind %s to %s: %v", from, to, err)
	}
	if readOnly {
		if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return status.Errorf(codes.Internal, "read-only %s: %v", to, err)
		}
	}
	return nil
}

func unbind(path string, remove bool) error {
	if mounted(path) {
		if err := unix.Unmount(path, 0); err != nil {
			return status.Error(codes.Internal, fmt.Sprintf("unmount %s: %v", path, err))
		}
	}
	if !remove {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}
