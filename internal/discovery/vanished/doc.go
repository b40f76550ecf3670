// Package vanished looks after the local volumes of nodes that are no more: the controller's half of the discovery, and the work of the
// local volume static provisioner's node-cleanup controller, whose flags and metrics it has.
//
// What flows in: nodes and local volumes. What flows out: a word about each volume that no node can serve (events of the volume and its
// claim, the volume's status, a metric); after a while the volumes that nobody has are taken away, and, for classes whose owner asked for it,
// the claims that wait for a node that will not come.
//
// It never touches a disk. Since when a node is missed stands on the volume, so that a death or another leader does not begin the wait anew.
package vanished
