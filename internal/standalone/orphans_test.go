package standalone

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/block/pool"
)

// What any PersistentVolume or pod names is nobody's orphan, whichever driver it names it through.
func TestOrphansOfAPool(t *testing.T) {
	survey := pool.Survey{Name: "default"}
	for _, id := range []string{"csi", "flex", "flex-in-pod", "lost"} {
		survey.Volumes = append(survey.Volumes, pool.Volume{ID: id, Name: id})
	}
	flex := func(id string) *corev1.FlexPersistentVolumeSource {
		return &corev1.FlexPersistentVolumeSource{Driver: "acme/block", Options: map[string]string{"volumeID": id}}
	}
	volumes := []corev1.PersistentVolume{
		{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: blockDriver, VolumeHandle: "csi"}}}},
		{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{FlexVolume: flex("flex")}}},
	}
	pods := []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{FlexVolume: &corev1.FlexVolumeSource{Driver: "berth/block", Options: map[string]string{"volumeID": "flex-in-pod"}}}},
	}}}}
	found := orphansOf(survey, volumes, nil, pods)
	if len(found) != 1 || found[0].Name != "default/lost" {
		t.Errorf("found %+v, want default/lost alone", found)
	}
}
