// Package try is the bench for authors of CSI drivers (`berth try`): a private instance in a directory of its own, the
// driver behind a recording proxy, and the real flow through the API, csi-sanity and faults against it.
//
// What flows in is a driver (a command or its sockets), what flows out is a Report. It stands above package standalone and
// uses Berth as a user does: it starts `berth up` as a child and speaks to its API. Package proxy records and spoils
// RPCs, package spec judges them; neither knows an instance.
//
// Nothing outlives a run: a keeper (keeper.go) stands between the terminal and the bench, and takes away what the bench
// leaves, however it ends. What a killed keeper leaves, the next run takes away.
package try
