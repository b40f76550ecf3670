// Package objects reads and writes the custom resources that a cluster's controller (internal/backend/cluster) and its node agents
// (internal/block/agent) share: typed clients without a rate limit, informers, and the typed errors of internal/backend as they
// stand in a status.
//
// It decides nothing. Writes stand in the boundaries of its callers.
package objects
