package try

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/try/spec"
)

// grows: Kubernetes expands through either service.
func (b *bench) grows() bool {
	return b.caps.HasController("EXPAND_VOLUME") || b.caps.HasNode("EXPAND_VOLUME")
}

func (b *bench) needExpand(kind string) error {
	switch {
	case !b.grows():
		return skipf("the driver does not advertise EXPAND_VOLUME")
	case !b.caps.HasPlugin("EXPANSION_" + kind):
		return skipf("the driver does not advertise the volume expansion %s", kind)
	}
	return b.needMount()
}

func (b *bench) stepExpandOnline(ctx context.Context, s *Step) error {
	err := b.expandOnline(ctx, s)
	b.noOnline = err != nil // the faults do not wait for it again
	return err
}

func (b *bench) expandOnline(ctx context.Context, s *Step) error {
	if err := b.needExpand("ONLINE"); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 13)
	if err != nil {
		return err
	}
	before := filesystemSize(path)
	if err := b.enlarge(ctx, s.Name, 2*b.o.size()); err != nil {
		return err
	}
	if _, err := b.enlarged(ctx, s.Name, 2*b.o.size()); err != nil {
		return err
	}
	b.grown(s, path, before)
	if err := checkData(path, "data", sum); err != nil {
		b.violate(s, dataLost("the volume was expanded while mounted", err))
	}
	return nil
}

// stepExpandOffline expands a volume that no pod has, then mounts it.
func (b *bench) stepExpandOffline(ctx context.Context, s *Step) error {
	if !b.caps.HasPlugin("EXPANSION_ONLINE") {
		if err := b.needExpand("OFFLINE"); err != nil {
			return err
		}
	} else if err := b.needExpand("ONLINE"); err != nil { // who can online can offline
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 14)
	if err != nil {
		return err
	}
	before := filesystemSize(path)
	if err := b.endPod(ctx, s.Name); err != nil {
		return err
	}
	if err := b.detached(ctx, s.Name); err != nil {
		return err
	}
	if err := b.enlarge(ctx, s.Name, 2*b.o.size()); err != nil {
		return err
	}
	if err := b.pod(ctx, s, s.Name, s.Name); err != nil {
		return err
	}
	if path, err = b.ready(ctx, s.Name); err != nil {
		return err
	}
	if _, err := b.enlarged(ctx, s.Name, 2*b.o.size()); err != nil {
		return err
	}
	b.grown(s, path, before)
	if err := checkData(path, "data", sum); err != nil {
		b.violate(s, dataLost("the volume was expanded while nobody used it", err))
	}
	return nil
}

// enlarge asks for more.
func (b *bench) enlarge(ctx context.Context, claim string, bytes int64) error {
	api := b.in.client.CoreV1().PersistentVolumeClaims(namespace)
	for {
		c, err := api.Get(ctx, claim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.Spec.Resources.Requests[corev1.ResourceStorage] = *resource.NewQuantity(bytes, resource.BinarySI)
		if _, err = update(ctx, api.Update, c); !isConflict(err) {
			return err
		}
	}
}

// enlarged waits until the claim says that it is so.
func (b *bench) enlarged(ctx context.Context, claim string, bytes int64) (*corev1.PersistentVolumeClaim, error) {
	return await(ctx, b.in.client.CoreV1().PersistentVolumeClaims(namespace), "claim", claim, func(c *corev1.PersistentVolumeClaim, found bool) (bool, string) {
		have := c.Status.Capacity[corev1.ResourceStorage]
		state := "its capacity is " + have.String()
		for _, cond := range c.Status.Conditions {
			state += fmt.Sprintf("; %s: %s", cond.Type, cond.Message)
		}
		return found && have.Value() >= bytes, state
	})
}

// grown looks whether a filesystem of the volume's own has grown. A directory of a larger filesystem tells nothing.
func (b *bench) grown(s *Step, path string, before int64) {
	if before == 0 || before > 2*b.o.size() {
		s.Notes = append(s.Notes, "the size of the filesystem tells nothing: it is not the volume's own")
		return
	}
	if after := filesystemSize(path); after <= before {
		b.violate(s, spec.Violation{Rule: "NodeExpandVolume/not-expanded", Section: "NodeExpandVolume",
			Text: fmt.Sprintf("the expansion answered OK, and the mounted filesystem has %d bytes as before", after)})
	}
}

func filesystemSize(path string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0
	}
	return int64(st.Blocks) * st.Bsize
}

func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

func writeDevice(path string, seed uint64) (string, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return fill(f, seed)
}

func checkDevice(path, sum string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return compare(f, sum)
}
