package provision

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// A library sees its own write until the informer has something newer, and never something older than the informer has.
func TestAheadShowsTheNewer(t *testing.T) {
	pv := func(version string) *v1.PersistentVolume {
		return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", ResourceVersion: version}}
	}
	for _, c := range []struct {
		name                string
		has, noted, becomes string // resourceVersions; "" is no object
		want                string
	}{
		{name: "nothing noted", has: "9", want: "9"},
		{name: "noted before its event", has: "9", noted: "10", want: "10"},
		{name: "its event came", has: "9", noted: "10", becomes: "10", want: "10"},
		{name: "somebody wrote after it", has: "9", noted: "10", becomes: "11", want: "11"},
		{name: "answered after somebody's next write", has: "11", noted: "10", want: "11"},
		{name: "deleted meanwhile", has: "", noted: "10", want: ""},
		{name: "a version that is no number", has: "9", noted: "x", want: "9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			shared := cache.NewStore(cache.MetaNamespaceKeyFunc)
			set := func(version string) {
				if version != "" {
					if err := shared.Update(pv(version)); err != nil {
						t.Fatal(err)
					}
				}
			}
			set(c.has)
			a := newAhead(shared)
			if c.noted != "" {
				if err := a.Update(pv(c.noted)); err != nil {
					t.Fatal(err)
				}
			}
			set(c.becomes)
			got := ""
			o, exists, err := a.GetByKey("v")
			if err != nil {
				t.Fatal(err)
			}
			if exists {
				got = o.(*v1.PersistentVolume).ResourceVersion
			}
			if got != c.want {
				t.Errorf("version %q, want %q", got, c.want)
			}
			if o, exists, _ := shared.GetByKey("v"); exists && c.becomes == "" && o.(*v1.PersistentVolume).ResourceVersion != c.has {
				t.Errorf("the informer's own store was written")
			}
			if c.want != c.noted && len(a.noted) > 0 {
				t.Errorf("%d notes are kept that nobody will see", len(a.noted))
			}
		})
	}
}

// sig-storage-lib stores a claim that it gave back to the scheduler with the version of before: the shared informer keeps its own.
func TestALibrarysClaimDoesNotReachTheSharedInformer(t *testing.T) {
	w := start(t, claim("a", "d", func(c *v1.PersistentVolumeClaim) { c.ResourceVersion = "7" }))
	informers := w.m.opts.Informers.Core().V1().PersistentVolumeClaims()
	w.eventually("the claim", func() bool { return len(informers.Informer().GetStore().List()) == 1 })
	mine := noting(through(newScope("d"), informers, nil)).Informer().GetStore()
	if err := mine.Update(claim("a", "another", func(c *v1.PersistentVolumeClaim) { c.ResourceVersion = "7" })); err != nil {
		t.Fatal(err)
	}
	c, err := w.m.claims.PersistentVolumeClaims("ns").Get("a")
	if err != nil || provisionerOf(c) != "d" {
		t.Errorf("the shared informer has %v, %v", c, err)
	}
}
