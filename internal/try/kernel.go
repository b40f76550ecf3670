package try

import (
	"errors"
	"io/fs"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/try/proxy"
	"berth.io/berth/internal/try/spec"
)

// kernel looks whether what the driver said it did is so, before the caller hears of it.
func (b *bench) kernel(c *proxy.Call) []spec.Violation {
	if c.Code != codes.OK || c.From == proxy.Fault || c.Response == nil {
		return nil
	}
	switch q := c.Request.(type) {
	case *csi.NodePublishVolumeRequest:
		return b.published(c, q)
	case *csi.NodeUnpublishVolumeRequest:
		return b.unpublished(c, q)
	}
	return nil
}

func (b *bench) published(c *proxy.Call, q *csi.NodePublishVolumeRequest) []spec.Violation {
	at := func(rule, text string) []spec.Violation {
		return b.checker.Add(spec.Violation{Rule: c.Method + "/" + rule, Section: "NodePublishVolume", Text: text, Call: c.Number})
	}
	_, err := os.Lstat(q.GetTargetPath())
	if errors.Is(err, fs.ErrNotExist) {
		return at("no-target", "NodePublishVolume answered OK, and there is nothing at target_path; the driver must make it")
	}
	if err != nil {
		return nil
	}
	if q.GetVolumeCapability().GetBlock() != nil {
		if info, err := os.Stat(q.GetTargetPath()); err != nil || info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
			return at("no-device", "NodePublishVolume of a raw block volume answered OK, and target_path is no block device")
		}
		return nil
	}
	mounted, err := mountpoint.Is(q.GetTargetPath())
	if err == nil && !mounted {
		return at("not-a-mount", "NodePublishVolume answered OK, and target_path is no mount (here, where the kubelet would look): what a pod writes there is not in the volume")
	}
	if err != nil || !q.GetReadonly() {
		return nil
	}
	if ro, err := mountpoint.ReadOnly(q.GetTargetPath()); err == nil && !ro {
		return at("readonly-ignored", "NodePublishVolume with readonly=true answered OK, and the mount at target_path is writable")
	}
	return nil
}

func (b *bench) unpublished(c *proxy.Call, q *csi.NodeUnpublishVolumeRequest) []spec.Violation {
	at := func(rule, text string) []spec.Violation {
		return b.checker.Add(spec.Violation{Rule: c.Method + "/" + rule, Section: "NodeUnpublishVolume", Text: text, Call: c.Number})
	}
	if mounted, err := mountpoint.Is(q.GetTargetPath()); err == nil && mounted {
		return at("still-mounted", "NodeUnpublishVolume answered OK, and the volume is still mounted at target_path")
	}
	if _, err := os.Lstat(q.GetTargetPath()); err == nil {
		return at("target-left", "NodeUnpublishVolume answered OK, and target_path is still there; the driver must delete what it made")
	}
	return nil
}
