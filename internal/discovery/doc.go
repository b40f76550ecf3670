// Package discovery turns the local disks of a node into local PersistentVolumes: the work of the local volume static
// provisioner (kubernetes-sigs/sig-storage-local-static-provisioner), whose configuration it reads as it is.
//
// What flows in: the directories that the configuration names, one for each class, with mount points and links to block
// devices in them, and the volumes of the API. What flows out: one volume for each disk, under the name that the original gives
// it; a wiped disk and a new volume after the old one was released; a word (event, metric, status) about every disk that is
// refused or gone.
//
// A disk is known by what is on it or in it, not by its path: a mounted filesystem or a bound directory carries a mark in an
// extended attribute of its root (mark.go), which a pod neither sees nor removes; a device, whose every byte is the
// pod's, is known by what the kernel says of its hardware (device.go). So a disk that moves makes no second volume.
//
// It wipes only what the API says was offered and released, on the disk that was offered, and that nobody uses (clean.go). A
// disk with data and without a volume is never offered and never wiped: whose data it is cannot be known.
//
// Everything is one pass over all disks (scan.go), which events start: inotify, mount changes, the kernel's device events, the API. A
// pass makes one step for each disk and is right after a death anywhere: what it needs to know is on the disk and in the API.
package discovery
