package provision

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// What a user is told of a claim, by how long it took and what became of it.
func TestEventsOfAClaim(t *testing.T) {
	type said struct {
		after  time.Duration
		reason string
		kind   string
	}
	begins := said{0, "Provisioning", v1.EventTypeNormal}
	for _, c := range []struct {
		name string
		said []said
		told []string
	}{
		{"made quickly", []said{begins, {quickly - time.Millisecond, "ProvisioningSucceeded", v1.EventTypeNormal}}, []string{"ProvisioningSucceeded"}},
		{"made slowly", []said{begins, {quickly + time.Millisecond, "ProvisioningSucceeded", v1.EventTypeNormal}}, []string{"Provisioning", "ProvisioningSucceeded"}},
		{"refused quickly", []said{begins, {time.Millisecond, "ProvisioningFailed", v1.EventTypeWarning}}, []string{"Provisioning", "ProvisioningFailed"}},
		{"not made yet", []said{begins}, []string{"Provisioning"}},
		{"begun twice", []said{begins, {500 * time.Millisecond, "Provisioning", v1.EventTypeNormal}, {time.Millisecond, "ProvisioningSucceeded", v1.EventTypeNormal}}, []string{"ProvisioningSucceeded"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := fake.NewClientset()
				sink := newTerse(t.Context(), api).CoreV1().Events("")
				for i, s := range c.said {
					time.Sleep(s.after)
					e := &v1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: s.reason + string(rune('a'+i))}, Reason: s.reason, Type: s.kind, Count: 1,
						InvolvedObject: v1.ObjectReference{Namespace: "ns", Name: "a", UID: "uid-a"}}
					if _, err := sink.CreateWithEventNamespaceWithContext(t.Context(), e); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(2 * quickly)
				synctest.Wait()
				all, err := api.CoreV1().Events("ns").List(t.Context(), metav1.ListOptions{})
				if err != nil {
					t.Fatal(err)
				}
				var told []string
				for _, e := range all.Items {
					told = append(told, e.Reason)
				}
				slices.Sort(told)
				if !slices.Equal(told, c.told) {
					t.Errorf("told: %v, want %v", told, c.told)
				}
			})
		})
	}
}
