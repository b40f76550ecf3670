#!/usr/bin/env bash
# build.sh BIN VERSION: builds all programs into BIN and shows how far it is; a first build compiles some 2 000
# packages and takes minutes, a later one seconds.
set -euo pipefail
bin=$1 version=$2
mkdir -p "$bin"
cd "$(dirname "$0")/.."

# build DIR OUT PACKAGE [go build flags]
build() {
  local dir=$1 out=$2 pkg=$3; shift 3
  local total log start
  start=$SECONDS log=$(mktemp)
  total=$(cd "$dir" && go list -deps "$pkg" | wc -l)
  if ! (cd "$dir" && go build -v "$@" -o "$bin/$out" "$pkg" 2>&1) | awk -v total="$total" -v name="$out" -v tty="$([ -t 1 ] && echo 1 || echo 0)" -v log_="$log" '
      /^[a-zA-Z0-9][^ :#]*$/ { n++; if (tty) printf "\r  building %s: %d of at most %d packages ", name, n, total; else if (n % 250 == 0) printf "  building %s: %d of at most %d packages\n", name, n, total; fflush(); next }
      /^go: downloading/ { d++; if (d % 50 == 1) { printf "%s  fetching modules for %s: %d%s", tty ? "\r" : "", name, d, tty ? " " : "\n"; fflush() } next }
      { print > log_ }
      END { if (tty && (n || d)) printf "\n" }'; then
    cat "$log" >&2; rm -f "$log"; return 1
  fi
  cat "$log" >&2; rm -f "$log"
  echo "  built bin/$out in $((SECONDS - start)) s"
}

build . berth ./cmd/berth -ldflags "-s -w -X berth.io/berth/internal/cli.Version=$version"
build cmd/berth-apiserver berth-apiserver . -ldflags "-s -w"
CGO_ENABLED=0 build . berth-flexvolume ./cmd/berth-flexvolume -trimpath -ldflags "-s -w -X main.Version=$version"
CGO_ENABLED=0 build . kubectl-berth ./cmd/kubectl-berth -trimpath -ldflags "-s -w -X main.Version=$version"
ln -sf kubectl-berth "$bin/kubectl_complete-berth"
