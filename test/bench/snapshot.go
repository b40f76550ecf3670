package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapshotclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/test/busy"
)

// snapshots measures how long the writes of a busy volume stand still for a snapshot, and how fast a volume is there that is made
// from a snapshot or from another volume.
func (s *subject) snapshots(ctx context.Context, snapshots, copies int, t *table) error {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.in.Dir, "kubeconfig"))
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := snapshotclient.NewForConfig(config)
	if err != nil {
		return err
	}
	// First: minutes of random writes leave the disk with work for minutes.
	if err := s.copies(ctx, client, copies, t); err != nil {
		return fmt.Errorf("restores and clones: %w", err)
	}
	if err := s.pauses(ctx, client, snapshots, t); err != nil {
		return fmt.Errorf("snapshots of a busy volume: %w", err)
	}
	return nil
}

// mounted makes a claim with a pod and returns where the volume is, and how long it took from when both were accepted. (Not from
// before: to begin a watch at the newest state takes up to 100 ms, which is this program's.)
func (s *subject) mounted(ctx context.Context, c *corev1.PersistentVolumeClaim) (path string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pods, err := s.watchPod(ctx, c.Name)
	if err != nil {
		return "", 0, err
	}
	defer pods.Stop()
	if _, err := s.client.CoreV1().PersistentVolumeClaims("default").Create(ctx, c, metav1.CreateOptions{}); err != nil {
		return "", 0, err
	}
	its := pod(c.Name)
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		app := &its.Spec.Containers[0]
		app.VolumeMounts, app.VolumeDevices = nil, []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
	}
	if _, err := s.client.CoreV1().Pods("default").Create(ctx, its, metav1.CreateOptions{}); err != nil {
		return "", 0, err
	}
	accepted := time.Now()
	err = waitPod(ctx, pods, func(p *corev1.Pod) bool {
		paths := map[string]string{}
		_ = json.Unmarshal([]byte(p.Annotations["storage.berth.io/paths"]), &paths)
		path = paths["data"]
		return isReady(p)
	})
	if took = time.Since(accepted); took > slow && err == nil {
		s.explain(ctx, c.Name, took)
	}
	return path, took, err
}

// gone deletes a pod and its claim and waits for the volume to be deleted.
func (s *subject) gone(ctx context.Context, name string) error {
	c, err := s.client.CoreV1().PersistentVolumeClaims("default").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	volumes, err := s.client.CoreV1().PersistentVolumes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + c.Spec.VolumeName})
	if err != nil {
		return err
	}
	defer volumes.Stop()
	if err := s.client.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := s.client.CoreV1().PersistentVolumeClaims("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	for e := range volumes.ResultChan() {
		if e.Type == "DELETED" {
			return nil
		}
	}
	return fmt.Errorf("volume %s is not gone: %w", c.Spec.VolumeName, ctx.Err())
}

// snapshot takes one of a claim and returns when it is ready.
func (s *subject) snapshot(ctx context.Context, client snapshotclient.Interface, name, claim string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w, err := client.SnapshotV1().VolumeSnapshots("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return err
	}
	defer w.Stop()
	_, err = client.SnapshotV1().VolumeSnapshots("default").Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for e := range w.ResultChan() {
		if v, ok := e.Object.(*snapshotv1.VolumeSnapshot); ok && v.Status != nil && v.Status.ReadyToUse != nil && *v.Status.ReadyToUse {
			return nil
		}
	}
	return fmt.Errorf("snapshot %s is not ready: %w", name, ctx.Err())
}

// held is for how long the driver has held back writes so far, all snapshots together.
func (s *subject) held(ctx context.Context) (time.Duration, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(s.in.Dir, "run/berth.sock"))
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berth/metrics", nil)
	if err != nil {
		return 0, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	const name = "berth_volume_frozen_seconds_sum "
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if number, ok := strings.CutPrefix(lines.Text(), name); ok {
			seconds, err := strconv.ParseFloat(number, 64)
			return time.Duration(seconds * float64(time.Second)), err
		}
	}
	return 0, fmt.Errorf("%s: no metric %s", s.name, name)
}

// pauses: the longest that any write took while a snapshot was taken, for each of n snapshots.
func (s *subject) pauses(ctx context.Context, client snapshotclient.Interface, n int, t *table) error {
	if n == 0 {
		return nil
	}
	path, _, err := s.mounted(ctx, claim("busy", "1Gi"))
	if err != nil {
		return err
	}
	w, err := busy.Start(filepath.Join(path, "data"), 768<<20, busy.Options{})
	if err != nil {
		return err
	}
	defer w.Stop()
	// The disk's own part: a file of no volume's, written to now and then.
	beside, err := busy.Start(filepath.Join(s.in.Dir, "beside"), 16<<20, busy.Options{AtOnce: 1, Rest: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	defer beside.Stop()
	var pauses, besides, without, besidesWithout, frozen, lasted []time.Duration
	var rate float64
	held, err := s.held(ctx)
	if err != nil {
		return err
	}
	for i := range n {
		before := w.Count.Load()
		time.Sleep(2 * time.Second) // of writes between two snapshots
		rate += float64(w.Count.Load()-before) / 2 / float64(n)
		w.Longest.Store(0)
		beside.Longest.Store(0)
		began := time.Now()
		if err := s.snapshot(ctx, client, fmt.Sprint("busy-", i), "busy"); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond) // a write that stood still is counted when it ends
		pauses, besides = append(pauses, time.Duration(w.Longest.Load())), append(besides, time.Duration(beside.Longest.Load()))
		lasted = append(lasted, time.Since(began))
		now, err := s.held(ctx)
		if err != nil {
			return err
		}
		frozen, held = append(frozen, now-held), now
		fmt.Fprintf(os.Stderr, "%s: snapshot %d of %d under writes: longest write %d ms, held back %d ms, beside it on the disk %d ms, all in all %d ms\n", s.name, i+1, n,
			pauses[i].Milliseconds(), frozen[i].Milliseconds(), besides[i].Milliseconds(), lasted[i].Milliseconds())
	}
	// The same writes for as long again, and no snapshot.
	for i, d := range lasted {
		w.Longest.Store(0)
		beside.Longest.Store(0)
		time.Sleep(d)
		without, besidesWithout = append(without, time.Duration(w.Longest.Load())), append(besidesWithout, time.Duration(beside.Longest.Load()))
		fmt.Fprintf(os.Stderr, "%s: no snapshot: longest write of %d ms %d ms, beside it on the disk %d ms\n", s.name, lasted[i].Milliseconds(), without[i].Milliseconds(),
			besidesWithout[i].Milliseconds())
	}
	if err := errors.Join(w.Stop(), beside.Stop()); err != nil {
		return err
	}
	t.durations(s.name, fmt.Sprintf("snapshot of 1 GiB under %.0f random writes of 4 KiB a second: longest write, %d snapshots", rate, n), pauses)
	t.durations(s.name, "– held back for the snapshot, by the driver's own clock", frozen)
	t.durations(s.name, "– meanwhile to a file beside the pool, on its disk", besides)
	t.durations(s.name, "– the longest write when there is no snapshot, for as long each", without)
	t.durations(s.name, "– meanwhile to that file beside the pool", besidesWithout)
	t.durations(s.name, "– that snapshot, from its object to ready", lasted)
	for i := range n {
		if err := client.SnapshotV1().VolumeSnapshots("default").Delete(ctx, fmt.Sprint("busy-", i), metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return s.gone(ctx, "busy")
}

// copies: a claim made from a snapshot, or from another claim, and its pod, accepted → mounted.
func (s *subject) copies(ctx context.Context, client snapshotclient.Interface, n int, t *table) error {
	if n == 0 {
		return nil
	}
	path, _, err := s.mounted(ctx, claim("source", "10Gi"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(path, "data"), make([]byte, 512<<20), 0o600); err != nil {
		return err
	}
	if err := s.snapshot(ctx, client, "source", "source"); err != nil {
		return err
	}
	group := snapshotv1.GroupName
	for what, from := range map[string]corev1.TypedLocalObjectReference{
		"snapshot restored to 10 GiB: claim + pod accepted → mounted":    {APIGroup: &group, Kind: "VolumeSnapshot", Name: "source"},
		"clone of 10 GiB that is in use: claim + pod accepted → mounted": {Kind: "PersistentVolumeClaim", Name: "source"},
	} {
		fmt.Fprintf(os.Stderr, "%s: %s\n", s.name, what)
		var took []time.Duration
		for range n {
			c := claim("copy", "10Gi")
			c.Spec.DataSource = &from
			_, one, err := s.mounted(ctx, c)
			if err != nil {
				return err
			}
			took = append(took, one)
			if err := s.gone(ctx, "copy"); err != nil {
				return err
			}
		}
		t.durations(s.name, what, took)
	}
	if err := client.SnapshotV1().VolumeSnapshots("default").Delete(ctx, "source", metav1.DeleteOptions{}); err != nil {
		return err
	}
	return s.gone(ctx, "source")
}
