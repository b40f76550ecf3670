//go:build component

package claim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/test/realapi"
)

// real starts berth-apiserver and the room against it.
func real(t *testing.T) kubernetes.Interface {
	t.Helper()
	client := realapi.Start(t, "berth").Client(t)
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	inf := informers.NewSharedInformerFactory(client, 0)
	c, err := New(Options{Client: client, Informers: inf, Events: record.NewFakeRecorder(1 << 20), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	inf.Start(ctx.Done())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; inf.Shutdown() })
	inf.WaitForCacheSync(ctx.Done())
	return client
}

// What only a real API server can say: that it takes our patches, and how long the journey takes.
func TestAgainstRealAPI(t *testing.T) {
	client := real(t)
	ctx := t.Context()
	if _, err := client.StorageV1().StorageClasses().Create(ctx, class("csi", "x.csi.example.com", storagev1.VolumeBindingImmediate), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	seen := informers.NewSharedInformerFactory(client, 0)
	lister := seen.Core().V1().PersistentVolumeClaims().Lister().PersistentVolumeClaims("ns")
	seen.Core().V1().PersistentVolumeClaims().Informer()
	stop := make(chan struct{})
	seen.Start(stop)
	t.Cleanup(func() { close(stop); seen.Shutdown() })
	seen.WaitForCacheSync(stop)
	state := func(name string) *v1.PersistentVolumeClaim {
		c, _ := lister.Get(name)
		return c
	}
	fresh := func(pv *v1.PersistentVolume) *v1.PersistentVolume {
		pv.UID, pv.Finalizers, pv.Status = "", nil, v1.PersistentVolumeStatus{}
		return pv
	}
	ask := func(name string, options ...pvcOption) *v1.PersistentVolumeClaim {
		c := claim(name, "1Gi", options...)
		c.UID, c.Finalizers, c.Status = "", nil, v1.PersistentVolumeClaimStatus{}
		made, err := client.CoreV1().PersistentVolumeClaims("ns").Create(ctx, c, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	csi := func(pv *v1.PersistentVolume) {
		pv.Spec.PersistentVolumeSource = v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "x.csi.example.com", VolumeHandle: pv.Name}}
	}

	t.Run("dynamic, one at a time", func(t *testing.T) {
		var handed, bound, gone []time.Duration
		for i := range 50 {
			name := fmt.Sprintf("d%02d", i)
			start := time.Now()
			c := ask(name, ofClass("csi"))
			eventually(t, "handed over", func() bool {
				s := state(name)
				return s != nil && s.Annotations[storagehelpers.AnnStorageProvisioner] != ""
			})
			handed = append(handed, time.Since(start))
			start = time.Now()
			pv := fresh(volume("pvc-"+name, "1Gi", csi, volumeOfClass("csi"), claimedBy(name, string(c.UID)), reclaimed(v1.PersistentVolumeReclaimRetain)))
			if _, err := client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "bound", func() bool { s := state(name); return s.Status.Phase == v1.ClaimBound })
			bound = append(bound, time.Since(start))
			start = time.Now()
			if err := client.CoreV1().PersistentVolumeClaims("ns").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "released", func() bool {
				pv, err := client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
				return err == nil && pv.Status.Phase == v1.VolumeReleased
			})
			gone = append(gone, time.Since(start))
			time.Sleep(150 * time.Millisecond) // the API server answers one consistent list of pods per 100 ms at once
		}
		t.Logf("claim made → handed over: %s", spread(handed))
		t.Logf("volume made → claim Bound: %s", spread(bound))
		t.Logf("claim deleted → volume Released: %s", spread(gone))
	})

	t.Run("static burst", func(t *testing.T) {
		const n = 200
		inParallel := func(do func(i int)) {
			var wg sync.WaitGroup
			for w := range 16 {
				wg.Go(func() {
					for i := w; i < n; i += 16 {
						do(i)
					}
				})
			}
			wg.Wait()
		}
		inParallel(func(i int) {
			if _, err := client.CoreV1().PersistentVolumes().Create(ctx, fresh(volume(fmt.Sprintf("s%03d", i), "1Gi", csi)), metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		inParallel(func(i int) { ask(fmt.Sprintf("s%03d", i)) })
		eventually(t, "all bound", func() bool {
			bound := 0
			for i := range n {
				if c := state(fmt.Sprintf("s%03d", i)); c != nil && c.Status.Phase == v1.ClaimBound {
					bound++
				}
			}
			return bound == n
		})
		t.Logf("%d claims made and bound in %s: %.0f/s", n, time.Since(start), n/time.Since(start).Seconds())
	})

	t.Run("unbind, reserved, lost", func(t *testing.T) {
		// A volume reserved by the user gets the UID; unbinding takes only that away.
		pv := fresh(volume("mine", "1Gi", csi, claimedBy("r", "")))
		if _, err := client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		ask("r")
		eventually(t, "bound", func() bool {
			s := state("r")
			return s != nil && s.Status.Phase == v1.ClaimBound && s.Spec.VolumeName == "mine"
		})
		twin := fresh(volume("twin", "1Gi", csi, claimedBy("r", string(state("r").UID)), volumeAnnotated(storagehelpers.AnnBoundByController, "yes")))
		if _, err := client.CoreV1().PersistentVolumes().Create(ctx, twin, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "twin unbound", func() bool {
			pv, err := client.CoreV1().PersistentVolumes().Get(ctx, "twin", metav1.GetOptions{})
			return err == nil && pv.Spec.ClaimRef == nil && pv.Status.Phase == v1.VolumeAvailable
		})
		if _, err := client.CoreV1().PersistentVolumes().Patch(ctx, "mine", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := client.CoreV1().PersistentVolumes().Delete(ctx, "mine", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		// The room puts the protection back as soon as it sees the volume without it, so either is right: the volume is
		// protected again and waits, or it is gone and the claim is Lost.
		eventually(t, "lost or protected", func() bool {
			pv, err := client.CoreV1().PersistentVolumes().Get(ctx, "mine", metav1.GetOptions{})
			return apierrors.IsNotFound(err) && state("r").Status.Phase == v1.ClaimLost || err == nil && pv.DeletionTimestamp != nil && slices.Contains(pv.Finalizers, volumeProtection)
		})
	})

	t.Run("expansion and size", func(t *testing.T) {
		ask("grow")
		if _, err := client.CoreV1().PersistentVolumes().Create(ctx, fresh(volume("grow", "1Gi", csi)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bound", func() bool { s := state("grow"); return s != nil && s.Status.Phase == v1.ClaimBound })
		if got := state("grow").Status.Capacity.Storage(); got.Cmp(resource.MustParse("1Gi")) != 0 {
			t.Errorf("capacity %s", got)
		}
	})
}

func spread(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("p50 %s, p90 %s, max %s", d[len(d)/2], d[len(d)*9/10], d[len(d)-1])
}
