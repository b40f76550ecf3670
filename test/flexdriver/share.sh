# The tutorials' k8s/nfs: binds $STATE/exports/SERVER/SHARE, as if it were mounted from there.
case "$op" in
init) answer '{"status":"Success","capabilities":{"attach":false,"fsGroup":false,"supportsMetrics":true}}' ;;
mount)
	server=$(option "$2" server)
	share=$(option "$2" share)
	[ -d "$STATE/exports/$server$share" ] || failure "$server:$share: no such export"
	mounted "$1" || mount --bind "$STATE/exports/$server$share" "$1" || failure "mount"
	[ "$(option "$2" kubernetes.io/readwrite)" = ro ] && mount -o remount,bind,ro "$1"
	success
	;;
unmount)
	if mounted "$1"; then umount "$1" || failure "umount $1"; fi
	success
	;;
*) unsupported ;;
esac
