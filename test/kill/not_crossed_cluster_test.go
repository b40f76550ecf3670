package kill

import "maps"

func init() {
	maps.Copy(notCrossed, map[string]string{
		"backend-cluster/change-volume":    clusterKilled,
		"backend-cluster/create-snapshot":  clusterKilled,
		"backend-cluster/create-volume":    clusterKilled,
		"backend-cluster/delete-snapshot":  clusterKilled,
		"backend-cluster/delete-volume":    clusterKilled,
		"backend-cluster/give-up-snapshot": clusterKilled,
		"backend-cluster/give-up-volume":   clusterKilled,
		"backend-cluster/mark-snapshot":    clusterKilled,
		"backend-cluster/mark-volume":      clusterKilled,
		"block-agent/create-pool":          clusterKilled,
		"block-agent/release-snapshot":     clusterKilled,
		"block-agent/release-volume":       clusterKilled,
		"block-agent/report-pool":          clusterKilled,
		"block-agent/report-snapshot":      clusterKilled,
		"block-agent/report-volume":        clusterKilled,
	})
}

const clusterKilled = "in a cluster only, not in `berth up`; internal/backend/cluster's component test kills before and after each"
