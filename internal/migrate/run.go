package migrate

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Migration is one run of `berth migrate flexvolume`.
type Migration struct {
	Client kubernetes.Interface
	// BlockDrivers are the FlexVolume drivers that are Berth's block driver.
	BlockDrivers []string
	// Node whose pool has the volumes; empty: the only one that has the CSI driver.
	Node string
	// UndoDir is where undo files are.
	UndoDir string
	// Again is the command line that takes back what an undo file says, for messages.
	Again func(file string) string
	// Within is how long a claim may take to become Bound again.
	Within time.Duration
	DryRun bool
	Out    io.Writer

	cluster types.UID
	prefix  string
}

func (m *Migration) say(format string, args ...any) {
	fmt.Fprintf(m.Out, m.prefix+format+"\n", args...)
}

// Volumes migrates volumes one after the other. One that cannot be migrated does not stop the others; the error says how many there
// are, after each has said why.
func (m *Migration) Volumes(ctx context.Context, names []string, selector labels.Selector) error {
	if err := m.identify(ctx); err != nil {
		return err
	}
	f, err := m.folder()
	if err != nil {
		return err
	}
	defer f.close()
	if selector != nil {
		if names, err = m.selected(ctx, f, selector); err != nil {
			return err
		}
		if len(names) == 0 {
			m.say("no FlexVolume volume has the labels %s", selector)
		}
	}
	failed := 0
	for i, name := range names {
		if len(names) > 1 {
			m.prefix = fmt.Sprintf("[%d/%d] ", i+1, len(names))
		}
		if err := m.volume(ctx, f, name); err != nil {
			if ctx.Err() != nil {
				return err
			}
			if len(names) == 1 {
				return err
			}
			m.say("refused: %v", err)
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d volumes were not migrated; the reasons are above", failed, len(names))
	}
	return nil
}

// folder is held by a run that writes; a dry run reads what is there.
func (m *Migration) folder() (*folder, error) {
	if m.DryRun {
		return &folder{dir: m.UndoDir}, nil
	}
	return openFolder(m.UndoDir)
}

// identify tells this cluster from others.
func (m *Migration) identify(ctx context.Context) error {
	ns, err := m.Client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("ask the API which cluster it is: %w", err)
	}
	m.cluster = ns.UID
	return nil
}

// selected are the FlexVolume volumes with the labels, and those of them whose migration has begun and which may not be in the API now.
func (m *Migration) selected(ctx context.Context, f *folder, selector labels.Selector) (names []string, err error) {
	list, err := m.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, pv := range list.Items {
		if pv.Spec.FlexVolume != nil {
			names = append(names, pv.Name)
		}
	}
	records, err := f.records(m.cluster)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if r.State == migrating && selector.Matches(labels.Set(r.Flex.Labels)) {
			names = append(names, r.Flex.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// volume migrates one.
func (m *Migration) volume(ctx context.Context, f *folder, name string) error {
	pv, err := m.get(ctx, name)
	if err != nil {
		return err
	}
	r, err := m.begun(f, name, pv)
	if err != nil {
		return err
	}
	switch {
	case r != nil && r.State == migrated, r == nil && pv != nil && pv.Spec.FlexVolume == nil && pv.Annotations[AnnMigratedFrom] != "":
		m.say("%s: is %s already", name, describe(pv))
		return nil
	case r == nil && pv == nil:
		return refuse(name, "there is no such PersistentVolume")
	case r != nil:
		if err := r.deletedByOthers(pv); err != nil {
			return err
		}
		m.say("%s: an earlier run has begun with it; undo file %s", name, r.path)
	default:
		if r, err = m.plan(ctx, f, pv); err != nil {
			return err
		}
	}
	m.warn(r, pv)
	if m.DryRun {
		m.say("%s: would become %s, with the same claim, size and data", name, describe(r.CSI))
		return nil
	}
	return m.swap(ctx, r)
}

// warn of what a migration changes for the data.
func (m *Migration) warn(r *record, pv *v1.PersistentVolume) {
	policy := r.Policy
	if pv != nil {
		policy = policyOf(pv)
	}
	if policy == v1.PersistentVolumeReclaimDelete {
		m.say("%s: its reclaim policy is Delete: FlexVolume deletes no volume, but once it is a CSI volume its data is deleted with its claim; set Retain to keep the data", r.Flex.Name)
	}
}

// begun finds the record that pv, or its absence, is in the middle or at the end of.
func (m *Migration) begun(f *folder, name string, pv *v1.PersistentVolume) (*record, error) {
	records, err := f.records(m.cluster)
	if err != nil {
		return nil, err
	}
	for _, r := range slices.Backward(records) {
		if r.Flex.Name != name {
			continue
		}
		if r.State == undoing && (pv == nil || sameSource(pv, r.Flex) || sameSource(pv, r.CSI)) {
			return nil, refuse(name, "its undo has begun: finish it with %s", m.Again(r.path))
		}
		switch {
		case pv == nil && r.State == migrating,
			pv != nil && r.State == migrating && (pv.UID == r.UID || sameSource(pv, r.CSI)),
			pv != nil && r.State == migrated && sameSource(pv, r.CSI):
			return r, nil
		}
	}
	return nil, nil
}

// plan makes sure that nothing is in the way, and what the volume is to become.
func (m *Migration) plan(ctx context.Context, f *folder, pv *v1.PersistentVolume) (*record, error) {
	if err := convertible(pv, m.BlockDrivers); err != nil {
		return nil, err
	}
	if pv.DeletionTimestamp != nil {
		return nil, refuse(pv.Name, "it is being deleted")
	}
	if err := m.movable(ctx, pv); err != nil {
		return nil, err
	}
	reach, err := m.reach(ctx, pv)
	if err != nil {
		return nil, err
	}
	return &record{State: migrating, Created: time.Now().UTC().Truncate(time.Millisecond), Cluster: m.cluster, UID: pv.UID, Policy: policyOf(pv),
		Flex: manifest(pv), CSI: toCSI(pv, CSIBlock, reach), path: f.newRecord(pv)}, nil
}

// movable: its claim and its users let it be removed and made anew now.
func (m *Migration) movable(ctx context.Context, pv *v1.PersistentVolume) error {
	claim, err := m.claimOf(ctx, pv)
	if err != nil {
		return err
	}
	if err := replaceable(pv, claim); err != nil {
		return err
	}
	return m.unused(ctx, pv)
}

// Undo takes a migration back, as far as it has come.
func (m *Migration) Undo(ctx context.Context, file string) error {
	if err := m.identify(ctx); err != nil {
		return err
	}
	f, err := m.folder()
	if err != nil {
		return err
	}
	defer f.close()
	r, err := readRecord(file)
	if err != nil {
		return err
	}
	name := r.Flex.Name
	if r.Cluster != m.cluster {
		return fmt.Errorf("undo file %s is of another cluster", file)
	}
	pv, err := m.get(ctx, name)
	if err != nil {
		return err
	}
	if r.State == undone {
		if pv != nil && sameSource(pv, r.Flex) {
			m.say("%s: is %s already", name, describe(pv))
			return nil
		}
		return refuse(name, "it was taken back before, and is another volume now")
	}
	if r.State == migrated && pv == nil {
		return refuse(name, "it was migrated, and its PersistentVolume was deleted since: there is nothing to take back")
	}
	if err := r.deletedByOthers(pv); err != nil {
		return err
	}
	if err := m.returnable(ctx, r, pv); err != nil {
		return err
	}
	if m.DryRun {
		m.say("%s: would become %s again, with the same claim, size and data", name, describe(r.Flex))
		return nil
	}
	// Said after everything is looked at, since from here on only the end of the undo goes on; and before anything is done: a migration
	// that is begun meanwhile must not take a half made volume for one of its own.
	r.State = undoing
	if err := r.save(); err != nil {
		return err
	}
	return m.swap(ctx, r)
}

// returnable: the volume is one of the two of the record, and may be removed now when it has to be.
func (m *Migration) returnable(ctx context.Context, r *record, pv *v1.PersistentVolume) error {
	switch {
	case pv == nil || sameSource(pv, r.Flex) && pv.DeletionTimestamp == nil:
		return nil
	case sameSource(pv, r.Flex) || sameSource(pv, r.CSI):
		return m.movable(ctx, pv)
	}
	return unknown(r, pv)
}

// get returns a volume, nil when there is none.
func (m *Migration) get(ctx context.Context, name string) (*v1.PersistentVolume, error) {
	pv, err := m.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", name, err)
	}
	return pv, nil
}

// claimOf returns the claim that the volume is bound to, nil when there is none.
func (m *Migration) claimOf(ctx context.Context, pv *v1.PersistentVolume) (*v1.PersistentVolumeClaim, error) {
	ref := pv.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return nil, nil
	}
	claim, err := m.Client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && claim.UID != ref.UID {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return claim, nil
}
