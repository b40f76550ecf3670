#!/usr/bin/env bash
# official.sh DIR: builds the official sidecars that the bench measures Berth beside into DIR/bin, from the modules that the
# Go module proxy has. What is there already is skipped; cold it takes some 8 minutes on 2 cores.
#
# Each is built in a copy of its module: its `replace` lines count in a main module only, and the module cache is read-only.
set -euo pipefail
dir=$1
mkdir -p "$dir/bin" "$dir/src"
exec 9>"$dir/lock" # two at once would write the same files
flock 9

# program MODULE VERSION PACKAGE
sidecars() {
  cat <<END
csi-provisioner github.com/kubernetes-csi/external-provisioner/v6 v6.3.0 ./cmd/csi-provisioner
csi-attacher github.com/kubernetes-csi/external-attacher/v4 v4.13.0 ./cmd/csi-attacher
csi-resizer github.com/kubernetes-csi/external-resizer/v2 v2.3.0 ./cmd/csi-resizer
csi-snapshotter github.com/kubernetes-csi/external-snapshotter/v8 v8.7.0 ./cmd/csi-snapshotter
END
}

# The snapshotter's module replaces its client by a folder beside it, which its copy in the module cache has not.
client=github.com/kubernetes-csi/external-snapshotter/client/v8

# flags VERSION: as release-tools/build.make builds the images, but for -a, which would compile the standard library, too.
flags() { echo "-X main.version=$1 -extldflags \"-static\""; }

# module MODULE VERSION: where the module cache has it.
module() { (cd / && go mod download -json "$1@$2") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }

while read -r name path version package; do
  stamp="$path $version $(go env GOVERSION GOARCH | tr '\n' ' ')"
  [ "$(cat "$dir/bin/.$name" 2>/dev/null)" != "$stamp" ] || continue
  echo "building the official $name $version" >&2
  start=$SECONDS
  from=$(module "$path" "$version")
  copy=$dir/src/$name
  rm -rf "$copy"
  cp -r --no-preserve=mode "$from" "$copy"
  if [ "$name" = csi-snapshotter ]; then
    (cd "$copy" && GOFLAGS=-mod=mod go mod edit -replace "$client=$client@$version")
  fi
  (cd "$copy" && CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=mod -buildvcs=false" nice -n 19 go build -ldflags "$(flags "$version")" -o "$dir/bin/$name.new" "$package")
  mv "$dir/bin/$name.new" "$dir/bin/$name"
  echo "$stamp" >"$dir/bin/.$name"
  rm -rf "$copy"
  echo "  built in $((SECONDS - start)) s" >&2
done < <(sidecars)
