#!/usr/bin/env bash
# fuzz.sh DURATION: runs every fuzz target of the tree for DURATION each.
set -euo pipefail
cd "$(dirname "$0")/.."
git grep -lE '^func Fuzz[A-Z]' -- '*_test.go' | while read -r file; do
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | awk '{print $2}' | while read -r target; do
    echo "fuzz $target in ./$(dirname "$file")"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$(dirname "$file")" </dev/null
  done
done
