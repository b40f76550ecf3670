package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/boundary"
)

// Options is what a Service needs; Client and Snapshots are enough for what changes objects only.
type Options struct {
	Client    kubernetes.Interface
	Snapshots snapclient.Interface
	// DataDir of the instance, which keeps the records of mounts on the host; empty: none are made here.
	DataDir string
	// Boot identifies this boot of the machine; empty: the kernel's own.
	Boot string
	// Mounted says where a pod's volume is, from the node itself; nil: the pod's status is believed. That may be of a
	// former life: after a restart of the machine a pod still is Ready whose volume is not mounted yet. Whoever gives it
	// calls PodChanged.
	Mounted func(pod types.UID, volume string) (path string, mounted bool)
	// Problem says in plain words what is wrong with a pod's volumes, empty when nothing is; may be nil.
	Problem func(ctx context.Context, namespace, pod string) string
	Log     *slog.Logger
}

// Service makes, mounts and removes volumes by name.
type Service struct {
	client    kubernetes.Interface
	snapshots snapclient.Interface
	records   records
	boot      string
	mountedOn func(pod types.UID, volume string) (path string, mounted bool)
	problem   func(ctx context.Context, namespace, pod string) string
	waiting   waiters
	mounting  mounting
	log       *slog.Logger
	busy      hold.Table // by claim: one mounts or unmounts at a time
}

// New makes a Service; nothing runs before Run, which only mounts on the host need.
func New(o Options) *Service {
	s := &Service{client: o.Client, snapshots: o.Snapshots, boot: o.Boot, mountedOn: o.Mounted, problem: o.Problem, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("room", "volume")
	if s.problem == nil {
		s.problem = func(context.Context, string, string) string { return "" }
	}
	if s.boot == "" {
		s.boot = thisBoot()
	}
	if o.DataDir != "" {
		s.records = recordsIn(o.DataDir)
	}
	return s
}

// thisBoot identifies this boot of the machine.
func thisBoot() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // always there
	return strings.TrimSpace(string(b))
}

// recordsIn is where the records of mounts on the host are.
func recordsIn(dataDir string) records { return records(filepath.Join(dataDir, "volumes")) }

// EnsureNamespace makes a namespace that pods can be made in.
func (s *Service) EnsureNamespace(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, goneWithin)
	defer cancel()
	_, err := s.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		err = boundary.Do("volume/create-namespace", func() error {
			_, err := s.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			return err
		})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return s.accountIn(ctx, name)
}

// claim finds the claim of a volume; ErrNotFound when there is none.
func (s *Service) claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	c, err := s.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, ClaimName(name), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && NameOf(c) != name:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	case err != nil:
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	return c, nil
}

// stopped tells an end of the caller or of the instance from other errors.
func stopped(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
