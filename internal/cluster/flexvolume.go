package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/flexvolume/block"
	"berth.io/berth/internal/flexvolume/install"
	"berth.io/berth/internal/host/durable"
	"berth.io/berth/internal/host/mountpoint"
)

// installFlexVolume puts the FlexVolume drivers of this version where the kubelet looks. An older version is replaced in one step.
func (n *node) installFlexVolume(ctx context.Context) error {
	if n.FlexVolumeDir == "" {
		return nil
	}
	if inPod() {
		n.tellOfPiledMounts()
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	changes, err := install.Install(ctx, filepath.Join(filepath.Dir(self), install.Program), install.Options{Dir: n.FlexVolumeDir, Vendor: install.DefaultVendor})
	if err != nil {
		return fmt.Errorf("--install-flexvolume: %w", err)
	}
	for _, c := range changes {
		if !c.Same {
			n.log.Info("FlexVolume driver installed", "driver", c.Vendor+"/"+c.Driver, "version", c.Version, "before", c.Before)
		}
	}
	return n.nameFlexSocket()
}

// tellOfPiledMounts warns of a DaemonSet that mounts the plugin directory though it is within a directory whose mounts reach the host: each
// start of this process finds the mounts of those before, and makes as many again.
func (n *node) tellOfPiledMounts() {
	mounts, err := mountpoint.List()
	if err != nil {
		n.log.Warn("FlexVolume: mounts", "err", err)
		return
	}
	if within, times := piled(mounts, n.FlexVolumeDir, n.KubeletDir, n.DataDir); times > 0 {
		n.log.Warn("--install-flexvolume is mounted by itself within a directory whose mounts reach the host: each start of this pod doubles them. "+
			"Take its volumeMount out of the DaemonSet, the directory is there without it, and unmount it on the node as often as it is mounted",
			"dir", n.FlexVolumeDir, "within", within, "mounts", times)
	}
}

// piled is how often dir itself is mounted, when it is within one of the others, and within which.
func piled(mounts []mountpoint.Entry, dir string, others ...string) (within string, times int) {
	dir = filepath.Clean(dir)
	at := slices.IndexFunc(others, func(o string) bool { return strings.HasPrefix(dir, filepath.Clean(o)+"/") })
	if at < 0 {
		return "", 0
	}
	for _, m := range mounts {
		if m.Path == dir {
			times++
		}
	}
	return others[at], times
}

// nameFlexSocket tells the installed block driver where this process listens, where that is not the default: a kubelet gives its
// drivers no environment.
func (n *node) nameFlexSocket() error {
	if n.WithoutBlock || n.flexSocket() == block.DefaultSocket {
		return nil
	}
	dir := filepath.Join(n.FlexVolumeDir, install.DefaultVendor+"~block")
	return boundary.Do("cluster/name-flexvolume-socket", func() error {
		return durable.Replace(filepath.Join(dir, block.SocketFile), filepath.Join(dir, ".new"), []byte(n.flexSocket()+"\n"))
	})
}

func (n *node) flexSocket() string { return filepath.Join(n.DataDir, "run", "flexvolume.sock") }

// uninstallFlexVolume takes the drivers away when the DaemonSet is gone: at the end of a process nobody says whether another follows. One
// whose volumes are mounted stays, since nothing else could unmount them.
func (n *node) uninstallFlexVolume(ctx context.Context) {
	if n.FlexVolumeDir == "" || n.DaemonSet == "" || !n.uninstalled(ctx) {
		return
	}
	removed, err := install.Uninstall(ctx, install.Options{Dir: n.FlexVolumeDir, Vendor: install.DefaultVendor})
	for _, i := range removed {
		n.log.Info("FlexVolume driver removed", "driver", i.Vendor+"/"+i.Driver)
	}
	if err != nil {
		n.log.Warn("FlexVolume drivers stay installed", "dir", n.FlexVolumeDir, "err", err)
	}
}

// uninstalled says whether the DaemonSet of this process is gone, or going. Its role may be gone already: a question that was
// allowed at the start and is not any more says as much.
func (n *node) uninstalled(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	set, err := n.client.AppsV1().DaemonSets(n.namespace).Get(ctx, n.DaemonSet, metav1.GetOptions{})
	switch {
	case err == nil:
		return set.DeletionTimestamp != nil
	case apierrors.IsNotFound(err):
		return n.knewDaemonSet
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return n.knewDaemonSet
	}
	n.log.Warn("whether the DaemonSet is gone cannot be known: the FlexVolume drivers stay", "daemonset", n.DaemonSet, "err", err)
	return false
}

// findDaemonSet notes that the DaemonSet is there, for uninstalled.
func (n *node) findDaemonSet(ctx context.Context) {
	if n.FlexVolumeDir == "" || n.DaemonSet == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	_, err := n.client.AppsV1().DaemonSets(n.namespace).Get(ctx, n.DaemonSet, metav1.GetOptions{})
	n.knewDaemonSet = err == nil
	if err != nil && !errors.Is(err, context.Canceled) {
		n.log.Warn("the FlexVolume drivers will stay when this is uninstalled: the DaemonSet cannot be read", "daemonset", n.namespace+"/"+n.DaemonSet, "err", err)
	}
}
