package schedule

import (
	"strings"
	"testing"
)

// TestDecisionsSeeEachOther: pods decided one after the other, before anything is written, share nothing that one has.
func TestDecisionsSeeEachOther(t *testing.T) {
	c := world(testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"),
		testClaim("c1", "static", "1Gi"), testClaim("c2", "static", "1Gi"), testClaim("once", "late", "1Gi", boundTo("pv"), oncePod),
		testVolume("a", "static", "1Gi"), testVolume("pv", "late", "1Gi"))
	first := testPod("p1", "c1", "once")
	d, no := decide(c, first)
	if no != nil {
		t.Fatal(no.message)
	}
	volumes, claims, err := c.assume(first, d)
	if err != nil || len(volumes) != 1 || len(claims) != 0 {
		t.Fatalf("to write: %v %v %v", volumes, claims, err)
	}
	if _, no := decide(c, testPod("p2", "c2")); no == nil || !strings.Contains(no.message, reasonBindConflict) {
		t.Errorf("the only volume was given twice: %v", no)
	}
	if _, no := decide(c, testPod("p3", "once")); no == nil || !strings.Contains(no.message, reasonReadWriteOncePod) {
		t.Errorf("the ReadWriteOncePod claim was given twice: %v", no)
	}
	c.unassumeVolume("a", first.UID)
	c.unplace(first.UID)
	if d, no := decide(c, testPod("p2", "c2")); no != nil || prebindNames(d)[0] != "c2=a" {
		t.Errorf("after the decision was taken back: %v %v", d, no)
	}
}

// TestAssumeSkipsWhatIsWritten: two pods of one claim write it once; a claim that has its node already is not written.
func TestAssumeSkipsWhatIsWritten(t *testing.T) {
	c := world(testNode("n1"), testClass("late", late, "d.csi"), testClaim("shared", "late", "1Gi"), testClaim("done", "late", "1Gi", selected("n1")))
	for i, want := range []int{1, 0} {
		pod := testPod([]string{"p1", "p2"}[i], "shared", "done")
		d, no := decide(c, pod)
		if no != nil {
			t.Fatal(no.message)
		}
		if _, claims, _ := c.assume(pod, d); len(claims) != want {
			t.Errorf("pod %d writes %d claims, want %d", i, len(claims), want)
		}
		if waits, err := settled(c, d); err != nil || len(waits) != 2 {
			t.Errorf("pod %d waits for %v, %v", i, waits, err)
		}
	}
}
