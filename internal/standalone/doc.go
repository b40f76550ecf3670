// Package standalone composes the rooms into one instance on one host: what `berth up` runs and `berth down` ends.
//
// It owns the order of start and stop, the data directory and what an instance has in its API from the beginning; it
// decides nothing about volumes. Flow: data directory held → API server and pool in parallel → API objects of
// the instance → rooms and informers → drivers registered → ready. Stopping leaves every volume mounted, as a kubelet
// does; only down takes them away.
package standalone
