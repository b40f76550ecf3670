// Package block serves volumes of the block store's pool on the node that has the pool: each volume is a file in it,
// attached by a loop device with direct I/O, mounted or handed on as a device.
//
// In the volume's journey this is everything between the CSI services (internal/driver) and the pool
// (internal/block/pool). It formats, attaches, mounts, and takes away again.
//
// What it must never do is format a volume that may hold data. A volume's description says whose bytes are in it, and
// changes, durably, before anybody else can write: fresh (never handed out; what is in it is an unfinished format of
// ours), formatted, raw. Only a fresh volume, and a raw one that reads as zeros, is formatted.
//
// Formatting takes longer than everything else, so it begins in the background as soon as the volume is there; Stage
// finds it done, waits for it, or does it.
//
// State: the kernel's mounts and loop devices are the truth. Beside a volume's description two symbolic links remember
// what the kernel cannot: "published" (the node's name) and "staged" (the staging path). A link is made by one atomic
// operation and has no content that could be lost; after a power cut it may be missing, as the mount is.
package block
