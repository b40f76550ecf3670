#!/usr/bin/env bash
# Installs the Debian packages that Berth calls and that are missing here, with --tests those that its tests call, too. Prints
# nothing when all are there.
set -euo pipefail
declare -A package=(
  [mkfs.xfs]=xfsprogs [xfs_growfs]=xfsprogs [mkfs.ext4]=e2fsprogs [resize2fs]=e2fsprogs [mkfs.btrfs]=btrfs-progs
  [blkid]=util-linux [losetup]=mount [gcc]=gcc
)
if [ "${1:-}" = --tests ]; then
  package+=([podman]=podman [crun]=crun [conmon]=conmon [busybox]=busybox-static [systemd-analyze]=systemd [setpriv]=util-linux [fio]=fio)
fi
PATH=$PATH:/usr/sbin:/sbin
missing=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev) # the race detector links with it
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
echo "installing ${missing[*]}"
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
