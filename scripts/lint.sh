#!/usr/bin/env bash
# gofmt and go vet on all modules, with the test tags on; staticcheck on ours alone, since for the few files of
# berth-apiserver it would read all of k8s.io/kubernetes, for minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "not gofmt'ed: $unformatted" >&2; exit 1; }
go vet -tags component,kubernetes,slow,vm,vmguest ./...
for module in cmd/berth-apiserver deploy/image test/deploy; do (cd $module && go vet ./...); done
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
(cd tools && go build -o "$tool/staticcheck" honnef.co/go/tools/cmd/staticcheck)
"$tool/staticcheck" -tags component,kubernetes,slow,vm,vmguest ./...
