package standalone

import (
	"context"
	"time"

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

// wait returns when every class of the driver has its capacity, or not within publishedWithin.
func (p *published) wait(ctx context.Context, driver string) {
	t := time.NewTimer(publishedWithin)
	defer t.Stop()
	for !p.complete(driver) {
		select {
		case <-p.changed:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (p *published) complete(driver string) bool {
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
	return true
}
