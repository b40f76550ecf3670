#!/usr/bin/env bash
# setup.sh [--tests|--vm|--kubernetes]: installs the Debian packages that Berth calls and that are missing here, and those that its
# tests call: make test's, those of the emulated machine, those of the real Kubernetes. Prints nothing when all are there.
set -euo pipefail
declare -A package=(
  [mkfs.xfs]=xfsprogs [xfs_growfs]=xfsprogs [mkfs.ext4]=e2fsprogs [resize2fs]=e2fsprogs [mkfs.btrfs]=btrfs-progs
  [blkid]=util-linux [losetup]=mount [gcc]=gcc
)
case ${1:-} in
  --tests) package+=([podman]=podman [crun]=crun [conmon]=conmon [busybox]=busybox-static [systemd-analyze]=systemd [setpriv]=util-linux [fio]=fio) ;;
  --vm) package+=([qemu-system-x86_64]=qemu-system-x86 [busybox]=busybox-static [depmod]=kmod [cpio]=cpio [lz4]=lz4 [python3]=python3
    [mount.nfs]=nfs-common [exportfs]=nfs-kernel-server [ganesha.nfsd]=nfs-ganesha
    [smbd]=samba [mount.cifs]=cifs-utils [lvm]=lvm2 [thin_check]=thin-provisioning-tools [ss]=iproute2) ;;
  --kubernetes) package+=([containerd]=containerd [runc]=runc [iptables]=iptables [ip]=iproute2 [openssl]=openssl [busybox]=busybox-static
    [pkill]=procps [/usr/lib/cni/bridge]=containernetworking-plugins) ;;
  "") ;;
  *) echo "setup.sh: unknown option $1" >&2; exit 2 ;;
esac
PATH=$PATH:/usr/sbin:/sbin
missing=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
[ "${1:-}" != --vm ] || compgen -G '/usr/lib/*/ganesha/libfsalvfs.so' >/dev/null || missing+=(nfs-ganesha-vfs) # a library
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev) # the race detector links with it
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
echo "installing ${missing[*]}"
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
