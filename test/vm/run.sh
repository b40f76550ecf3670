#!/usr/bin/env bash
# run.sh [--disk FILE]... [--timeout SECONDS] [--memory MIB] -- COMMAND [ARGUMENT]...
# Runs COMMAND as root in an emulated machine with Debian's stock kernel (build.sh), and exits with its code. The guest's / is the
# host's, read-only, with a private overlay: what the guest writes is gone afterwards. Its disks are /dev/vda and on.
# Exits with 124 at the timeout, 125 when the guest does not start or crashes. Environment: BERTH_VM_DIR.
set -uo pipefail
kernel=${BERTH_VM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/berth/vm} timeout=600 memory=1536 disks=()
while [ $# -gt 0 ]; do
  case $1 in
    --disk) disks+=(-drive "file=$2,format=raw,if=virtio,cache=unsafe"); shift 2;;
    --timeout) timeout=$2; shift 2;;
    --memory) memory=$2; shift 2;;
    --) shift; break;;
    *) echo "run.sh: unknown option $1" >&2; exit 125;;
  esac
done
"$(dirname "$0")/build.sh" "$kernel" || exit 125
shared=$(mktemp -d)
trap 'rm -rf "$shared"' EXIT
cat > "$shared/init" <<I
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 BERTH_IN_VM=1
mkdir -p /dev/pts /dev/shm /run/lock /lib/modules
mount -t devpts devpts /dev/pts; mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind $(printf %q "$kernel")/lib/modules /lib/modules
ln -sf /proc/self/fd /dev/fd
ip link set lo up
cd $(printf %q "$PWD")
setsid $(printf '%q ' "$@") >/dev/vport0p1 2>&1 </dev/null
echo \$? > /run/vm/code
sync -f /run/vm
echo o > /proc/sysrq-trigger
sleep 60
I
# An emulated processor's clock is the host's: without its rate a busy host makes the guest mistake it.
khz=$(awk -F'[:.]' '/^cpu MHz/ {printf "%d%s", $2, substr($3 "000", 1, 3); exit}' /proc/cpuinfo)
nine() { echo "local,id=$1,path=$2,security_model=none,multidevs=remap$3"; }
setpriv --pdeathsig TERM timeout --foreground -k 3 "$timeout" setpriv --pdeathsig KILL \
  qemu-system-x86_64 -M q35 -accel tcg,thread=multi,tb-size=256 -cpu max -m "$memory" -smp 2 -nodefaults -no-user-config -display none -no-reboot \
  -kernel "$kernel/vmlinux" -initrd "$kernel/initrd.gz" \
  -append "console=ttyS0 panic=-1 oops=panic loglevel=4 mitigations=off nopti tsc=reliable${khz:+ tsc_early_khz=$khz} no_timer_check random.trust_cpu=on" \
  -chardev "file,id=console,path=$shared/console" -serial chardev:console \
  -device virtio-serial-pci,max_ports=2 -chardev file,id=out,path=/dev/stdout,append=on -device virtserialport,chardev=out,nr=1,name=out \
  -fsdev "$(nine root / ,readonly=on)" -device virtio-9p-pci,fsdev=root,mount_tag=hostroot \
  -fsdev "$(nine vm "$shared" "")" -device virtio-9p-pci,fsdev=vm,mount_tag=vm \
  ${disks[@]+"${disks[@]}"} </dev/null
code=$?
[ ! -s "$shared/code" ] || exit "$(cat "$shared/code")"
[ $code != 124 ] || echo "run.sh: not done after $timeout s" >&2
tail -40 "$shared/console" >&2
[ $code = 124 ] && exit 124
exit 125
