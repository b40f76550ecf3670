# No attach: a tmpfs with a greeting.
case "$op" in
init) answer '{"status":"Success","capabilities":{"attach":false}}' ;;
mount)
	mkdir -p "$1"
	mounted "$1" || mount -t tmpfs none "$1" || failure "mount"
	echo "Hello from flexvolume!" >"$1/index.html"
	success
	;;
unmount)
	rm -f "$1/index.html"
	umount "$1" || failure "umount $1"
	success
	;;
*) unsupported ;;
esac
