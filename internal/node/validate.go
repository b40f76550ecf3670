package node

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/version"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// validatePlugin checks what the API and the kubelet check, so that a wrong plugin hears of it here and does not spoil
// an object that other plugins share.
func validatePlugin(info *registerapi.PluginInfo) error {
	if info.Type != registerapi.CSIPlugin {
		return fmt.Errorf("plugin %q is of type %q; this node takes %s only", info.Name, info.Type, registerapi.CSIPlugin)
	}
	if err := validateDriverName(info.Name); err != nil {
		return err
	}
	if len(info.SupportedVersions) == 0 {
		return fmt.Errorf("driver %s supports no version of CSI: its list is empty", info.Name)
	}
	for _, text := range info.SupportedVersions {
		if v, err := version.ParseGeneric(text); err == nil && v.Major() == 1 {
			return nil
		}
	}
	return fmt.Errorf("driver %s supports CSI %s; this node speaks 1.x", info.Name, strings.Join(info.SupportedVersions, ", "))
}

// validateDriverName: a name that CSIDriver objects can have (63 characters, CSI spec) in CSINode's letters.
func validateDriverName(name string) error {
	const longest = 63
	if len(name) > longest {
		return fmt.Errorf("driver name %q is longer than %d characters", name, longest)
	}
	if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
		return fmt.Errorf("driver name %q: %s", name, strings.Join(errs, "; "))
	}
	return nil
}

// driver is what CSINode, and the Node's labels and annotation, say about one driver.
type driver struct {
	node     storagev1.CSINodeDriver
	topology map[string]string
}

// driverEntry turns NodeGetInfo's answer into the driver's entry, or says why the API would refuse it.
func driverEntry(name string, self *csi.NodeGetInfoResponse) (driver, error) {
	const longestID = 192
	id := self.GetNodeId()
	switch {
	case id == "":
		return driver{}, errors.New("the node ID is empty")
	case len(id) > longestID:
		return driver{}, fmt.Errorf("the node ID is longer than %d characters", longestID)
	case self.GetMaxVolumesPerNode() < 0:
		return driver{}, fmt.Errorf("the limit of volumes is negative (%d)", self.GetMaxVolumesPerNode())
	}
	d := driver{node: storagev1.CSINodeDriver{Name: name, NodeID: id}, topology: self.GetAccessibleTopology().GetSegments()}
	for key, value := range d.topology {
		if errs := validation.IsQualifiedName(key); len(errs) > 0 {
			return driver{}, fmt.Errorf("topology key %q: %s", key, strings.Join(errs, "; "))
		}
		if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
			return driver{}, fmt.Errorf("topology %s=%q: %s", key, value, strings.Join(errs, "; "))
		}
	}
	d.node.TopologyKeys = slices.Sorted(maps.Keys(d.topology))
	if limit := self.GetMaxVolumesPerNode(); limit > 0 {
		count := int32(min(limit, math.MaxInt32))
		d.node.Allocatable = &storagev1.VolumeNodeResources{Count: &count}
	}
	return d, nil
}
