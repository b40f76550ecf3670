#!/usr/bin/env bash
# build.sh DIR: makes DIR/{vmlinux,initrd.gz,lib/modules/VERSION,version} from Debian's stock kernel package, once per version.
# Nothing is installed. Needs apt-get (updated), busybox-static, kmod, cpio, lz4, python3.
set -euo pipefail
dir=$1
mkdir -p "$dir"
cd "$dir"
exec 9>lock
flock 9
package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/{print $2; exit}')
[ -n "$package" ] || { echo "build.sh: apt knows no kernel; run apt-get update" >&2; exit 1; }
version=${package#linux-image-}
[ "$(cat version 2>/dev/null)" != "$version" ] || exit 0
rm -rf package tree
mkdir package tree
(cd package && apt-get download -qq "$package")
# 400 MB of modules become 100: without what no storage test wants.
k=./lib/modules/$version/kernel
skip=()
for s in sound drivers/{gpu,media,net/wireless,net/ethernet,staging,infiniband,usb,iio,hwmon,input,hid,bluetooth,platform,mfd,video,isdn} net/bluetooth; do
  skip+=(--exclude="$k/$s")
done
dpkg-deb --fsys-tarfile package/*.deb | tar -x -C tree "${skip[@]}" ./boot "./lib/modules/$version"
depmod -b tree "$version" 2>/dev/null
# The kernel as an ELF file: qemu enters it directly (PVH), and need not emulate four seconds of unpacking.
python3 - "tree/boot/vmlinuz-$version" vmlinux <<'P'
import lzma, struct, subprocess, sys
image = open(sys.argv[1], 'rb').read()
setup = ((image[0x1f1] or 4) + 1) * 512
offset, length = struct.unpack_from('<II', image, 0x248)  # Documentation/arch/x86/boot.rst, payload_offset and payload_length
payload = image[setup + offset : setup + offset + length]
if payload[:6] == b'\xfd7zXZ\0':
    kernel = lzma.LZMADecompressor().decompress(payload)
else:
    kernel = subprocess.run(['lz4', '-dc'], input=payload[:-4], stdout=subprocess.PIPE).stdout
open(sys.argv[2], 'wb').write(kernel)
P
# The initial ramdisk: busybox, the modules that the host's root needs, and init.
root=tree/initrd
mkdir -p $root/{bin,proc,sys,dev,m,lower,upper,new}
cp "$(command -v busybox)" $root/bin/busybox
for applet in sh mount insmod mkdir poweroff switch_root cat; do ln -s busybox "$root/bin/$applet"; done
for module in virtio_pci 9pnet_virtio 9p overlay virtio_console virtio_blk; do
  modprobe -d tree -S "$version" --show-depends "$module" 2>/dev/null | awk '$1 == "insmod" {print $2}'
done | awk '!seen[$0]++' | while read -r file; do
  cp "$file" $root/m/
  basename "$file"
done > $root/m/order
cat > $root/init <<'I'
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "/m/$module"; done < /m/order
nine=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o "ro,$nine,access=any,cache=loose" hostroot /lower || { echo "no root of the host"; poweroff -f; }
mount -t tmpfs -o mode=755,size=80% tmpfs /upper; mkdir /upper/u /upper/w
mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w,index=off,xino=off overlay /new || { echo "no overlay"; poweroff -f; }
mount -t tmpfs -o mode=755 tmpfs /new/run; mkdir -p /new/run/vm
mount -t 9p -o "$nine,access=any,cache=mmap" vm /new/run/vm || { echo "no shared directory"; poweroff -f; }
mount --move /dev /new/dev; mount --move /proc /new/proc; mount --move /sys /new/sys
exec switch_root /new /bin/bash /run/vm/init
I
chmod +x $root/init
(cd $root && find . | cpio -o -H newc --quiet | gzip -1) > initrd.gz
rm -rf lib
mv tree/lib lib
rm -rf package tree
echo "$version" > version
