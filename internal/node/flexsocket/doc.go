// Package flexsocket is where FlexVolume executables ask the node agent: a unix socket, mode 0600 in a directory that root alone
// may enter, which serves the backends of this node's pools.
//
// In the volume's journey this stands where the CSI services (internal/driver) stand: above a backend, below whoever calls. The
// executable (internal/flexvolume/block) lives for milliseconds and knows nothing; a call-out names a directory where the backend
// wants a volume. So the room remembers, one note for each volume, what was attached and mounted through it. A note is on disk
// before the act that it is about, and its mounts are checked against the kernel's at the start.
//
// A volume that is attached or staged by the backend's CSI driver is refused here, and one that is mounted through here is refused
// there: the backend stages a volume at one path only.
package flexsocket
