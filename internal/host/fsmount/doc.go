// Package fsmount puts filesystems that are not the pool's own at a directory: shares of NFS and CIFS servers, and logical volumes
// of LVM, which it also finds, makes, formats and grows.
//
// It serves the FlexVolume drivers and knows neither their protocol nor CSI's. What flows in: servers, names and mount options
// as a user wrote them (Validate refuses what could mean something else), and a Target. What flows out: a mount, read
// back from /proc/self/mountinfo.
//
// A mount appears at its target complete: below the right directory of the share, with all its flags. Until then it exists in a
// mount namespace of this process or as a descriptor alone (fsopen, open_tree), so a process that dies leaves nothing, and no
// link that somebody swaps in on the way leads anywhere.
//
// It needs Linux 5.12 (mount_setattr), and the tools mount.nfs, mount.cifs, lvm and mkfs for what is asked of it.
package fsmount
