# With attach, to no real device: what is attached is a file below $STATE/attached. mountdevice takes as long as $STATE/seconds says.
case "$op" in
init) answer '{"status":"Success","capabilities":{"attach":true,"requiresFSResize":true}}' ;;
attach)
	mkdir -p "$STATE/attached"
	name=$(option "$1" kubernetes.io/pvOrVolumeName)
	: >"$STATE/attached/$name@$2"
	answer '{"status":"Success","device":"foo"}'
	;;
detach)
	rm -f "$STATE/attached/$1@$2"
	success
	;;
isattached)
	name=$(option "$1" kubernetes.io/pvOrVolumeName)
	[ -e "$STATE/attached/$name@$2" ] && answer '{"status":"Success","attached":true}'
	answer '{"status":"Success","attached":false}'
	;;
waitforattach)
	[ "$1" = foo ] || failure "waitforattach expected device foo, got $1"
	answer '{"status":"Success","device":"foo"}'
	;;
mountdevice)
	[ "$2" = foo ] || failure "mountdevice expected device foo, got $2"
	mounted "$1" || mount -t tmpfs none "$1" || failure "mount"
	[ -f "$STATE/seconds" ] && sleep "$(cat "$STATE/seconds")"
	echo "Hello from flexvolume!" >"$1/index.html"
	success
	;;
unmountdevice)
	umount "$1" || failure "umount $1"
	success
	;;
expandvolume | expandfs) success ;;
*) unsupported ;;
esac
