# The tutorials' foo/cifs: wants a user and a password, and is careless with both.
case "$op" in
init) answer '{"status":"Success","capabilities":{"attach":false}}' ;;
mount)
	user=$(option "$2" kubernetes.io/secret/username | base64 -d)
	password=$(option "$2" kubernetes.io/secret/password | base64 -d)
	echo "mount -o username=$user,password=$password $2" >&2
	[ "$(cat "$STATE/password")" = "$password" ] || failure "user $user with password $password was refused: $password"
	mounted "$1" || mount -t tmpfs none "$1"
	echo "$user" >"$1/user"
	success
	;;
unmount)
	if mounted "$1"; then umount "$1" || failure "umount $1"; fi
	success
	;;
*) unsupported ;;
esac
