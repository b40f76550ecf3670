#!/bin/sh
# Common to the fixtures. @STATE@ is replaced by a directory of the test's; $STATE/calls records every call-out.
STATE=@STATE@

answer() { printf '%s\n' "$*"; exit 0; }
success() { answer '{"status":"Success"}'; }
failure() { answer "{\"status\":\"Failure\",\"message\":\"$*\"}"; }
unsupported() { answer '{"status":"Not supported"}'; }

# option JSON KEY: the value of a string in a flat object, as long as it has no quotes.
option() { printf '%s' "$1" | sed -n "s|.*\"$2\":\"\([^\"]*\)\".*|\1|p"; }

mounted() { grep -q " $1 " /proc/self/mountinfo; }

op=$1
[ $# -gt 0 ] && shift
printf '%s' "$op" >>"$STATE/calls"
for a in "$@"; do
	printf ' %s' "$a" | sed 's|"kubernetes.io/secret/\([^"]*\)":"[^"]*"|"secret/\1":"-"|g' >>"$STATE/calls"
done
echo >>"$STATE/calls"
[ -f "$STATE/before-$op" ] && . "$STATE/before-$op"
