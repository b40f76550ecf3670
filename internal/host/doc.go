// Package host holds what this machine's kernel and tools do for the storage side, one small package each:
//
//	loop/        files as block devices
//	xfs/         geometry, growth, extent sizes and extent maps of XFS
//	mountpoint/  mounts, by system call
//	filesystem/  recognise, make and grow ext4, XFS and btrfs
//	fsmount/     shares of NFS and CIFS, logical volumes; it has its own boundaries
//	command/     external programs, bounded in time and output
//
// They decide nothing and keep no state. But for fsmount/, their callers wrap each lasting effect in a boundary.
package host
