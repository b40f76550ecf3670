# A real device: a loop device on $STATE/disks/NAME, of 320 MiB (XFS wants 300), which the host formats, mounts, binds and grows.
case "$op" in
init) answer '{"status":"Success"}' ;;
attach)
	mkdir -p "$STATE/disks"
	file=$STATE/disks/$(option "$1" kubernetes.io/pvOrVolumeName)
	[ -f "$file" ] || truncate -s 320M "$file"
	device=$(losetup -j "$file" | head -n 1 | cut -d: -f1)
	[ -n "$device" ] || device=$(losetup --find --show "$file") || failure "losetup"
	answer "{\"status\":\"Success\",\"device\":\"$device\"}"
	;;
detach)
	for device in $(losetup -j "$STATE/disks/$1" | cut -d: -f1); do
		losetup --detach "$device" || failure "losetup --detach $device"
	done
	success
	;;
isattached)
	[ -n "$(losetup -j "$STATE/disks/$(option "$1" kubernetes.io/pvOrVolumeName)")" ] && answer '{"status":"Success","attached":true}'
	answer '{"status":"Success","attached":false}'
	;;
expandvolume)
	file=$STATE/disks/$(option "$1" kubernetes.io/pvOrVolumeName)
	truncate -s "$3" "$file"
	for device in $(losetup -j "$file" | cut -d: -f1); do losetup --set-capacity "$device"; done
	answer "{\"status\":\"Success\",\"volumeNewSize\":$3}"
	;;
*) unsupported ;;
esac
