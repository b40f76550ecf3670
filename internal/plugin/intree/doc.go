// Package intree serves the volumes that need no driver: emptyDir, configMap, secret, downwardAPI, projected, hostPath
// and local (phase 3, below mount and plugin).
//
// What flows in are publish and unpublish requests of the mount room, the API's config maps, secrets and tokens; what
// flows out are directories below DIR/pods/<uid>/volumes with the names, modes, owners and links that upstream's
// pkg/volume gives them, so that a program cannot tell the difference.
//
// The contents of configMap, secret and projected volumes follow their objects: Sources (sources.go) watches each
// object that a pod of this node refers to, and no other, and asks for a new publish when it changes.
//
// It never follows a link out of a volume, never removes through a mount point, and never formats a device that holds data.
package intree
