package standalone

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
)

// publishedWithin bounds the wait for the first figures of capacity, which take some 50 ms. An instance that cannot say
// how much room it has serves all the same.
const publishedWithin = 5 * time.Second

// published knows whether there is a CSIStorageCapacity for each class of our driver. Before that the scheduler refuses
// every claim of the class with "not enough free storage", as it must for a driver that publishes capacity: so an
// instance says that it is ready only afterwards. The scheduler itself keeps upstream's rule.
type published struct {
	classes    storagelisters.StorageClassLister
	capacities storagelisters.CSIStorageCapacityLister
	changed    chan struct{}
}

func (r *rooms) watchPublished() error {
	storage := r.informers.Storage().V1()
	p := &published{classes: storage.StorageClasses().Lister(), capacities: storage.CSIStorageCapacities().Lister(), changed: make(chan struct{}, 1)}
	signal := func() {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	r.published = p
	storage.StorageClasses().Informer() // asked for before the factory starts
	_, err := storage.CSIStorageCapacities().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { signal() }})
	return err
}

// wait returns when every class of the driver has its capacity, and so have the named ones, which the informer may not know
// yet; or not within publishedWithin.
func (p *published) wait(ctx context.Context, driver string, classes ...string) {
	t := time.NewTimer(publishedWithin)
	defer t.Stop()
	for !p.complete(driver, classes...) {
		select {
		case <-p.changed:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (p *published) complete(driver string, named ...string) bool {
	capacities, err := p.capacities.List(labels.Everything())
	if err != nil {
		return false
	}
	told := map[string]bool{}
	for _, c := range capacities {
		told[c.StorageClassName] = true
	}
	classes, err := p.classes.List(labels.Everything())
	if err != nil {
		return false
	}
	for _, c := range classes {
		if c.Provisioner == driver && !told[c.Name] {
			return false
		}
	}
	return !slices.ContainsFunc(named, func(class string) bool { return !told[class] })
}

// classGate holds back what follows a StorageClass of our driver in a user's file until the capacity of the class is
// published: a pod that comes before is refused once, with "not enough free storage".
type classGate struct {
	published *published
	driver    string
	classes   []string // made and not waited for
}

// before is called before u is applied.
func (g *classGate) before(ctx context.Context, u *unstructured.Unstructured) {
	if u.GetKind() == "StorageClass" {
		if p, _, _ := unstructured.NestedString(u.Object, "provisioner"); p == g.driver {
			g.classes = append(g.classes, u.GetName())
		}
		return
	}
	if len(g.classes) > 0 {
		g.published.wait(ctx, g.driver, g.classes...)
		g.classes = nil
	}
}
