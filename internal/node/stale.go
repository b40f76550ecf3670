package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/node/holder"
)

// UnreadyStale takes Ready from the pods of the node whose volumes are not mounted although their status says so: it is of a
// former boot of the machine, or of before `berth down`. To be called before anything else is served: who believes the
// status writes into the directory in which the volume will be mounted, and what was written there is hidden then.
// A pod whose volumes are mounted, as after a restart of the agent alone, is not written.
func UnreadyStale(ctx context.Context, client kubernetes.Interface, node, dataDir string) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	entries, err := mountpoint.List()
	if err != nil {
		return err
	}
	mounted := map[string]bool{}
	for _, e := range entries {
		mounted[e.Path] = true
	}
	// From the watch cache: nobody has written since the API server filled it, and a consistent list would have to wait.
	pods, err := client.CoreV1().Pods(v1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0",
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", strings.ToLower(node)).String()})
	if err != nil {
		return fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(podWorkers)
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName != strings.ToLower(node) || ended(pod) {
			continue
		}
		if ready, _ := holder.Ready(pod); !ready {
			continue
		}
		if missing := notMounted(pod, dataDir, func(path string) bool { return mounted[path] }); len(missing) > 0 {
			work.Go(func() error { return unready(ctx, client, pod, missing) })
		}
	}
	return work.Wait()
}

// notMounted names the volumes that hold data and are not where the pod's status says they are. Volumes that are no mount of
// their own (a directory of the host, files that are written anew) are as good as they were.
func notMounted(pod *v1.Pod, dataDir string, isMount func(path string) bool) (missing []string) {
	paths := holder.Paths(pod)
	own := filepath.Join(dataDir, "pods", string(pod.UID)) + "/"
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		inMemory := v.EmptyDir != nil && v.EmptyDir.Medium != v1.StorageMediumDefault
		if v.PersistentVolumeClaim == nil && v.Ephemeral == nil && v.CSI == nil && v.FlexVolume == nil && !inMemory {
			continue
		}
		path := paths[v.Name]
		if path != "" && !strings.HasPrefix(filepath.Clean(path)+"/", own) {
			continue // a hostPath volume; the annotation is anybody's to write, and decides about the pod's own readiness alone
		}
		if path == "" || !inPlace(path, isMount) {
			missing = append(missing, v.Name)
		}
	}
	return missing
}

// inPlace says whether path, or what it is a link to, is a mount point or a device.
func inPlace(path string, isMount func(string) bool) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	if isMount(real) {
		return true
	}
	info, err := os.Stat(real)
	return err == nil && info.Mode()&os.ModeDevice != 0
}

// unready writes a status like the agent's own about volumes that are not mounted yet.
func unready(ctx context.Context, client kubernetes.Interface, pod *v1.Pod, missing []string) error {
	vols := mount.PodStatus{}
	for _, name := range missing {
		vols.Volumes = append(vols.Volumes, mount.VolumeStatus{Name: name, Waiting: "it is not mounted any more since the node stopped, and is mounted again"})
	}
	patch, err := podPatch(pod, holderStatus(pod, vols, nil, metav1.Now()), pod.Annotations[holder.PathsAnnotation])
	if err != nil {
		return err
	}
	err = boundary.Do("node/unready-stale-pod", func() error {
		_, err := client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another pod of the name
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("take Ready from pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return err
}
