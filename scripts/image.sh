#!/usr/bin/env bash
# image.sh OUT VERSION [NAME...]: builds the container image as an OCI archive, for `ctr -n k8s.io images import OUT`, without a
# daemon and without a registry. The names are berth:VERSION and the one that the chart asks for, unless given.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
out=$(realpath -m "$1") version=$2; shift 2
cd "$(dirname "$0")/.."
# A tag may have letters, digits and . _ - alone: a version of git describes fits.
[ $# -gt 0 ] || set -- "berth:${version//[^A-Za-z0-9_.-]/-}" "berth:$(sed -n 's/^appVersion: *//p' deploy/helm/berth/Chart.yaml)"
for tool in apt-get apt-cache dpkg-deb; do
  command -v "$tool" >/dev/null || { echo "image.sh: there is no $tool: the image is made of Debian's packages; elsewhere use deploy/image/Dockerfile" >&2; exit 1; }
done
mkdir -p "$(dirname "$out")"
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT
export CGO_ENABLED=0
go build -trimpath -buildvcs=false -ldflags "-s -w -X berth.io/berth/internal/cli.Version=$version" -o "$programs/berth" ./cmd/berth
go build -trimpath -buildvcs=false -ldflags "-s -w -X main.Version=$version" -o "$programs/berth-flexvolume" ./cmd/berth-flexvolume
(cd deploy/image && go build -o "$programs/image" .)
# The packages are kept, so that only new versions are fetched again.
packages=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/berth/image-packages
"$programs/image" -programs "$programs" -version "$version" -contents deploy/image/contents.txt -packages "$packages" -out "$out" "$@"
