package provision

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	snapscheme "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/scheme"
)

// client-go's scheme must not change once anything decodes with it: its maps have no lock, and a concurrent read and
// write ends the process. The libraries change it all the same, so it is settled here, before anything runs.
func init() {
	// The snapshot controllers' recorders refer to their objects by this scheme.
	_ = snapscheme.AddToScheme(clientscheme.Scheme)

	// sig-storage-lib registers core/v1 again with every controller that it makes, which here is whenever a driver
	// comes. client-go's scheme has had it since its own init.
	register := corev1.AddToScheme
	corev1.AddToScheme = func(s *runtime.Scheme) error {
		if s == clientscheme.Scheme {
			return nil
		}
		return register(s)
	}
}
