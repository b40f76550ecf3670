// Package guest is the part of the machine test that runs inside of the machine (tag vmguest): the FlexVolume drivers, driven as a
// kubelet drives them, on the kernel's NFS server, on Samba and on a volume group. test/vm starts it.
package guest
