// Package flexvolume is the FlexVolume host: it finds drivers that are executables in a directory, and calls them where a volume
// is attached, mounted, grown and taken away (upstream pkg/volume/flexvolume).
//
// What flows in: volumes with a flexVolume source, from the attach, mount and claim rooms, as calls of internal/plugin's
// interfaces; and what inotify tells of the directory. What flows out: one process per call-out, with JSON on its command line
// and JSON on its standard output (answer.go). A driver is not trusted: each call-out has a deadline past which its process
// group is killed, what it writes is bounded, and what it says is shown without the volume's secrets.
//
// One driver that hangs, rots or is replaced holds up only its own volumes. Nothing here holds a lock during a call-out.
//
// Unlike upstream, the package notes beside each volume what is needed to take it away again with neither API nor memory
// (record.go), and never takes two volumes for one because their names are equal (names.go).
package flexvolume
