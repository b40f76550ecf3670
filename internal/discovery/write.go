package discovery

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

func (d *Discovery) createVolume(ctx context.Context, pv *v1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return boundary.Do("discovery/create-volume", func() error {
		return d.metrics.request("create", func() error {
			_, err := d.opts.Client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{})
			return err
		})
	})
}

// deleteVolume takes away the very volume that was looked at; with unchanged, only as long as nothing of it has changed since (it
// could have been bound).
func (d *Discovery) deleteVolume(ctx context.Context, pv *v1.PersistentVolume, unchanged bool) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	only := &metav1.Preconditions{UID: &pv.UID}
	if unchanged {
		only.ResourceVersion = &pv.ResourceVersion
	}
	err := boundary.Do("discovery/delete-volume", func() error {
		return d.metrics.request("delete", func() error {
			return d.opts.Client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: only})
		})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// noteDisk writes the identity of its disk into a volume that the original made.
func (d *Discovery) noteDisk(ctx context.Context, pv *v1.PersistentVolume, disk string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pv.UID, "annotations": map[string]string{annDisk: disk}}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return boundary.Do("discovery/adopt-volume", func() error {
		return d.metrics.request("patch", func() error {
			_, err := d.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	})
}

// writeStatus writes the state of its disk into a volume's status. A volume has no conditions; reason and message are what it has.
func (d *Discovery) writeStatus(ctx context.Context, pv *v1.PersistentVolume, reason, message string) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pv.UID}, "status": map[string]string{"reason": reason, "message": message}})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err = boundary.Do("discovery/report-disk", func() error {
		return d.metrics.request("patch", func() error {
			_, err := d.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
			return err
		})
	})
	if err != nil && !apierrors.IsNotFound(err) {
		d.log.Warn("the status of a volume", "volume", pv.Name, "error", err)
	}
}

// takeTaintAway takes away the taint with which nodes wait for their disks, once, when everything was served in a pass (the original's
// removeNodeNotReadyTaint).
func (s *scan) takeTaintAway(ctx context.Context) {
	if s.config.NotReadyTaint == "" || s.untaint {
		return
	}
	keep := []v1.Taint{}
	for _, t := range s.node.Spec.Taints {
		if t.Key != s.config.NotReadyTaint {
			keep = append(keep, t)
		}
	}
	if len(keep) == len(s.node.Spec.Taints) {
		return // it may still come: the node is watched
	}
	// Taints are one field for all who set them: the write is refused when somebody else was there meanwhile.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": s.node.ResourceVersion}, "spec": map[string]any{"taints": keep}})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err = boundary.Do("discovery/remove-taint", func() error {
		return s.metrics.request("patch", func() error {
			_, err := s.opts.Client.CoreV1().Nodes().Patch(ctx, s.node.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	})
	if err != nil {
		s.log.Warn("the taint that waits for the disks stays for now", "taint", s.config.NotReadyTaint, "error", err)
		s.wakeIn(retryAfter)
		return
	}
	s.untaint = true
	s.log.Info("all disks are served: the node's taint was taken away", "taint", s.config.NotReadyTaint)
}

// tell says something about a volume, once until it changes.
func (d *Discovery) tell(subject string, pv *v1.PersistentVolume, kind, reason, text string) {
	if d.said[subject] = true; d.told[subject] == reason+text {
		return
	}
	d.told[subject] = reason + text
	d.opts.Events.Event(pv, kind, reason, text)
	d.log.Warn("discovery", "volume", pv.Name, "reason", reason, "message", text)
}

// tellNode is tell of what has no volume: the node has the event.
func (d *Discovery) tellNode(subject, kind, reason, text string) {
	if d.said[subject] = true; d.told[subject] == reason+text {
		return
	}
	d.told[subject] = reason + text
	ref := &v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: d.opts.Node, UID: types.UID(d.opts.Node)} // as a kubelet's
	d.opts.Events.Event(ref, kind, reason, text)
	d.log.Warn("discovery", "reason", reason, "message", text)
}

// inDirectory splits a path into a directory and a name directly in it.
func inDirectory(dir, path string) (string, bool) {
	file, inside := strings.CutPrefix(path, dir+"/")
	if !inside || file == "" || file == "." || file == ".." || strings.Contains(file, "/") || filepath.Clean(path) != path {
		return fmt.Sprint(file), false
	}
	return file, true
}
