package standalone

import (
	"net/url"

	"k8s.io/apimachinery/pkg/types"
)

// pathPodPaths answers where the node has mounted a pod's volumes, for `berth exec`.
const pathPodPaths = "/v1/pods/{uid}/paths"

// PathPodPaths is its path for one pod.
func PathPodPaths(uid types.UID) string { return "/v1/pods/" + url.PathEscape(string(uid)) + "/paths" }

// podPaths are the pod's mounted volumes, volume name to host path, as the node itself knows them.
func (in *instance) podPaths(uid types.UID) map[string]string {
	paths := map[string]string{}
	for _, v := range in.rooms.mount.Status(uid).Volumes {
		if v.Mounted && v.Path != "" {
			paths[v.Name] = v.Path
		}
	}
	return paths
}
