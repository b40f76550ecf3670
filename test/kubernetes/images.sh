#!/usr/bin/env bash
# images.sh [e2e]: makes the container images of the test cluster from this machine's own busybox, so that no registry
# is asked: pause and busybox, and with "e2e" agnhost, under the names that the kubelet and the official suite ask for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./state.sh
work=$(mktemp -d -p "$STATE")
trap 'rm -rf "$work"' EXIT

# add DIR MEDIATYPE < CONTENT: puts a blob into the OCI layout DIR and prints its descriptor.
add() {
  local digest size
  cat >"$1/blob"
  digest=$(sha256sum "$1/blob" | cut -d' ' -f1) size=$(stat -c %s "$1/blob")
  mv "$1/blob" "$1/blobs/sha256/$digest"
  printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$2" "$digest" "$size"
}

# image OUT ROOT CONFIG NAME...: writes an OCI archive of one layer, known by all the names.
image() {
  local out=$1 root=$2 config=$3 layout=$work/layout layer manifest names=() name
  shift 3
  rm -rf "$layout"
  mkdir -p "$layout/blobs/sha256"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  # Not compressed: the digest of the layer is then that of its content, which the configuration names.
  layer=$(tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$root" . | add "$layout" application/vnd.oci.image.layer.v1.tar)
  config=$(printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
    "$(go env GOARCH)" "$config" "$(grep -o 'sha256:[0-9a-f]*' <<<"$layer")" | add "$layout" application/vnd.oci.image.config.v1+json)
  manifest=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$layer" | add "$layout" application/vnd.oci.image.manifest.v1+json)
  for name in "$@"; do
    names+=("${manifest%\}},\"annotations\":{\"io.containerd.image.name\":\"$name\"}}")
  done
  (IFS=,; printf '{"schemaVersion":2,"manifests":[%s]}' "${names[*]}") >"$layout/index.json"
  tar --create -C "$layout" -f "$work/out" .
  mv "$work/out" "$IMAGES/$out"
}

busybox=$(command -v busybox)
path='"Env":["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]'
suite=registry.k8s.io/e2e-test-images
root=$work/busybox
mkdir -p "$IMAGES" "$root"/{bin,dev,etc,proc,root,sys,tmp,usr,var}
chmod 1777 "$root/tmp"
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
ln -s bin "$root/sbin"
ln -s ../bin "$root/usr/bin"
ln -s ../bin "$root/usr/sbin"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
image busybox.tar "$root" "{\"Cmd\":[\"sh\"],$path}" docker.io/library/busybox:{latest,1.37} "$suite"/{busybox:{1.29-2,1.36.1-1,1.37.0-1},nginx:1.15-4}
# What holds a pod's namespaces has to reap what is left to it and to end on SIGTERM, no more: a shell does that.
image pause.tar "$root" '{"Entrypoint":["/bin/sh","-c","trap exit TERM; while :; do sleep 2147483647 & wait; done"],"User":"65535:65535"}' registry.k8s.io/pause:3.10.1

# take PROGRAM: puts this machine's own, with its libraries, in the place of busybox's.
take() {
  local program library
  program=$(command -v "$1")
  rm "$root/bin/$1"
  cp --dereference "$program" "$root/bin/$1"
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp --dereference "$library" "$root$library"
  done
}

if [ "${1:-}" = e2e ]; then
  # The suite enters the node's mount namespace with nsenter and a shell. busybox's own would then run its applets in
  # place of the node's programs, so the image has the node's nsenter with its libraries.
  take nsenter
  cp "$BIN/agnhost" "$root/agnhost"
  ln -s agnhost "$root/agnhost-2"
  mkdir -p "$root/uploads"
  image agnhost.tar "$root" "{\"Entrypoint\":[\"/agnhost\"],\"Cmd\":[\"pause\"],$path}" "$suite"/agnhost:{2.63.0,2.55}
  # In several pods of one node it writes past the cache, which busybox's dd cannot; and busybox's sh would run that one.
  take dd
  take sh
  rm "$root"/agnhost "$root"/agnhost-2
  image glibc.tar "$root" "{\"Cmd\":[\"sh\"],$path}" "$suite"/glibc-dns-testing:2.0.0
fi
