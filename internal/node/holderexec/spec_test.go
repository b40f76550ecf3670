package holderexec

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/node/holder"
)

func TestVolumesThatTheNodeWritesAreReadOnly(t *testing.T) {
	readOnly := map[string]bool{"config": true, "secret": true, "downward": true, "projected": true, "scratch": false, "asked": true}
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod"},
		Spec: v1.PodSpec{
			Containers: []v1.Container{{Name: "c"}},
			Volumes: []v1.Volume{
				{Name: "config", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{}}},
				{Name: "secret", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{}}},
				{Name: "downward", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{}}},
				{Name: "projected", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{}}},
				{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
				{Name: "asked", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			},
		},
	}
	for name := range readOnly {
		m := v1.VolumeMount{Name: name, MountPath: "/mnt/" + name, ReadOnly: name == "asked"}
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, m)
	}
	paths := map[string]string{"config": "/1", "secret": "/2", "downward": "/3", "projected": "/4", "scratch": "/5", "asked": "/6"}
	s, err := SpecFor(pod, "", "/data", paths)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Mounts {
		if m.ReadOnly != readOnly[m.Volume] {
			t.Errorf("%s: read-only %v", m.Volume, m.ReadOnly)
		}
	}
}

// Who may patch a pod may write any path into its annotation: it is not looked at.
func TestTheAnnotationDoesNotChooseWhatIsBound(t *testing.T) {
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod", UID: "uid", Annotations: map[string]string{holder.PathsAnnotation: `{"data":"/etc"}`}},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "data", MountPath: "/data"}}}}},
	}
	if _, err := SpecFor(pod, "", "/d", nil); err == nil || !strings.Contains(err.Error(), "not mounted yet") {
		t.Errorf("the agent has no such volume: %v", err)
	}
	s, err := SpecFor(pod, "", "/d", map[string]string{"data": "/d/pods/uid/volumes/x"})
	if err != nil || len(s.Mounts) != 1 || s.Mounts[0].Source != "/d/pods/uid/volumes/x" {
		t.Errorf("%+v, %v", s, err)
	}
}
