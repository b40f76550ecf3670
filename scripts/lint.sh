#!/usr/bin/env bash
# gofmt, go vet and staticcheck on both modules, with the test tags on.
set -euo pipefail
cd "$(dirname "$0")/.."
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "not gofmt'ed: $unformatted" >&2; exit 1; }
go vet -tags component ./...
(cd cmd/berth-apiserver && go vet ./...)
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
(cd tools && go build -o "$tool/staticcheck" honnef.co/go/tools/cmd/staticcheck)
"$tool/staticcheck" -tags component ./...
(cd cmd/berth-apiserver && "$tool/staticcheck" ./...)
