// Package pool keeps volumes on one disk of this machine: the storage of the block store.
//
// A pool is an XFS filesystem (reflink) on a preallocated file of the host's filesystem, or on a raw device. A volume
// is a directory in it, volumes/<id>/, with a sparse file "disk" and its description "volume.json". Bulk data, crash
// consistency, reflinks and discard are XFS's; this package decides only what is promised to whom.
//
// The one promise is space. For each volume its full size is reserved, and the sum of the reservations never exceeds
// what the host's disk has really allocated for the pool:
//
//	reserved <= usable(backed)
//
// (account.go is that arithmetic, alone.) So a write in a running volume never meets a full disk, neither the pool's
// nor the host's. The pool file grows ahead of use: fallocate, then the loop device, then XFS. XFS cannot shrink, so
// what is given back to the host is first taken away from XFS by a file that occupies it, the ballast, and only then
// punched out of the pool file; to use it again the host's blocks are allocated first and the ballast shrinks after.
// Whatever moment the process dies at, each block that XFS may hand out is backed.
//
// What flows in: ids, sizes, descriptions. What flows out: paths of files. The pool knows no Kubernetes and no CSI; it
// never attaches or formats a volume (internal/backend/block does).
//
// Calls for one volume must not overlap; calls for different volumes may.
package pool
