package spec

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Capabilities are what a driver promises, by the specification's names.
type Capabilities struct {
	Plugin     []string `json:"plugin"`     // "CONTROLLER_SERVICE", "EXPANSION_ONLINE", …
	Controller []string `json:"controller"` // "CREATE_DELETE_VOLUME", …
	Node       []string `json:"node"`
	Group      []string `json:"group,omitempty"`
}

// AddPlugin takes in GetPluginCapabilities; those of volume expansion get the prefix "EXPANSION_".
func (c *Capabilities) AddPlugin(r *csi.GetPluginCapabilitiesResponse) {
	for _, e := range r.GetCapabilities() {
		switch {
		case e.GetService() != nil:
			c.Plugin = append(c.Plugin, e.GetService().GetType().String())
		case e.GetVolumeExpansion() != nil:
			c.Plugin = append(c.Plugin, "EXPANSION_"+e.GetVolumeExpansion().GetType().String())
		}
	}
	slices.Sort(c.Plugin)
	c.Plugin = slices.Compact(c.Plugin)
}

// AddController takes in ControllerGetCapabilities.
func (c *Capabilities) AddController(r *csi.ControllerGetCapabilitiesResponse) {
	for _, e := range r.GetCapabilities() {
		c.Controller = append(c.Controller, e.GetRpc().GetType().String())
	}
	slices.Sort(c.Controller)
}

// AddNode takes in NodeGetCapabilities.
func (c *Capabilities) AddNode(r *csi.NodeGetCapabilitiesResponse) {
	for _, e := range r.GetCapabilities() {
		c.Node = append(c.Node, e.GetRpc().GetType().String())
	}
	slices.Sort(c.Node)
}

// AddGroup takes in GroupControllerGetCapabilities.
func (c *Capabilities) AddGroup(r *csi.GroupControllerGetCapabilitiesResponse) {
	for _, e := range r.GetCapabilities() {
		c.Group = append(c.Group, e.GetRpc().GetType().String())
	}
	slices.Sort(c.Group)
}

// HasPlugin and the others ask for one promise.
func (c Capabilities) HasPlugin(name string) bool     { return slices.Contains(c.Plugin, name) }
func (c Capabilities) HasController(name string) bool { return slices.Contains(c.Controller, name) }
func (c Capabilities) HasNode(name string) bool       { return slices.Contains(c.Node, name) }
func (c Capabilities) HasGroup(name string) bool      { return slices.Contains(c.Group, name) }

// Names of the services in GetPluginCapabilities.
const (
	ControllerService = "CONTROLLER_SERVICE"
	GroupService      = "GROUP_CONTROLLER_SERVICE"
	Constraints       = "VOLUME_ACCESSIBILITY_CONSTRAINTS"
)

// promisedBy says which capability obliges a driver to implement a method.
var promisedBy = map[string]struct{ kind, name string }{
	"CreateVolume":                {"controller", "CREATE_DELETE_VOLUME"},
	"DeleteVolume":                {"controller", "CREATE_DELETE_VOLUME"},
	"ControllerPublishVolume":     {"controller", "PUBLISH_UNPUBLISH_VOLUME"},
	"ControllerUnpublishVolume":   {"controller", "PUBLISH_UNPUBLISH_VOLUME"},
	"ListVolumes":                 {"controller", "LIST_VOLUMES"},
	"GetCapacity":                 {"controller", "GET_CAPACITY"},
	"CreateSnapshot":              {"controller", "CREATE_DELETE_SNAPSHOT"},
	"DeleteSnapshot":              {"controller", "CREATE_DELETE_SNAPSHOT"},
	"ListSnapshots":               {"controller", "LIST_SNAPSHOTS"},
	"GetSnapshot":                 {"controller", "GET_SNAPSHOT"},
	"ControllerExpandVolume":      {"controller", "EXPAND_VOLUME"},
	"ControllerGetVolume":         {"controller", "GET_VOLUME"},
	"ControllerModifyVolume":      {"controller", "MODIFY_VOLUME"},
	"NodeStageVolume":             {"node", "STAGE_UNSTAGE_VOLUME"},
	"NodeUnstageVolume":           {"node", "STAGE_UNSTAGE_VOLUME"},
	"NodeGetVolumeStats":          {"node", "GET_VOLUME_STATS"},
	"NodeExpandVolume":            {"node", "EXPAND_VOLUME"},
	"CreateVolumeGroupSnapshot":   {"group", "CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT"},
	"DeleteVolumeGroupSnapshot":   {"group", "CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT"},
	"GetVolumeGroupSnapshot":      {"group", "CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT"},
	"ValidateVolumeCapabilities":  {"plugin", ControllerService},
	"ControllerGetCapabilities":   {"plugin", ControllerService},
	"GroupControllerCapabilities": {"plugin", GroupService},
	"NodePublishVolume":           {"always", "the node service"},
	"NodeUnpublishVolume":         {"always", "the node service"},
	"NodeGetCapabilities":         {"always", "the node service"},
	"GetPluginInfo":               {"always", "the identity service"},
	"GetPluginCapabilities":       {"always", "the identity service"},
	"Probe":                       {"always", "the identity service"},
}

// Promised lists the methods that some capability asks for, with that capability.
func Promised(method string) (capability string, ok bool) {
	p, ok := promisedBy[method]
	return p.name, ok
}

// promises returns the capability by which the driver must implement method, or "".
func (c Capabilities) promises(method string) string {
	p := promisedBy[method]
	has := false
	switch p.kind {
	case "controller":
		has = c.HasController(p.name)
	case "node":
		has = c.HasNode(p.name)
	case "group":
		has = c.HasGroup(p.name)
	case "plugin":
		has = c.HasPlugin(p.name)
	case "always":
		has = true
	}
	if !has {
		return ""
	}
	return p.name
}

// Obliged says whether the driver must implement method.
func (c Capabilities) Obliged(method string) bool { return c.promises(method) != "" }
