#!/usr/bin/env bash
# build.sh [e2e]: builds Kubernetes and etcd from the Go modules that upstream/go.mod pins, and the container images
# that run in the cluster, into $BERTH_TEST_KUBERNETES. What is there already is skipped; with "e2e" also the official end-to-end
# suite and its image. Cold it takes some 20 minutes on 2 cores, warm less than a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./state.sh
want=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
[ "${1:-}" != e2e ] || want+=(agnhost ginkgo e2e.test)

# Without these the components call themselves v0.0.0-master and are refused by clients that compare versions.
version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' upstream/go.mod)
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  IFS=. read -r major minor _ <<<"${version#v}"
  flags+=" -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
  flags+=" -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
done

# What another module list or Go built is not what would be tested: it is built anew, program by program.
stamp=$(cat upstream/go.mod upstream/go.sum <(go env GOVERSION GOARCH) <(echo "$flags") | sha256sum | cut -c1-16)
mkdir -p "$BIN" "$IMAGES"

# The images are made of this machine's busybox; those of the suite are more than the others.
images=$(cat images.sh "$(command -v busybox)" | sha256sum | cut -c1-16)
fresh() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
images_fresh() { fresh "$IMAGES/.images" "$images e2e" || fresh "$IMAGES/.images" "$images ${1:-}"; }

missing=()
for name in "${want[@]}"; do fresh "$BIN/.$name" "$stamp" || missing+=("$name"); done
if [ ${#missing[@]} = 0 ] && images_fresh "$@"; then exit 0; fi

exec 9>"$STATE/build.lock" # two at once would write the same files
flock 9

# package NAME: the Go package of a program.
package() {
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    agnhost) echo k8s.io/kubernetes/test/images/agnhost ;;
    ginkgo) echo github.com/onsi/ginkgo/v2/ginkgo ;; # runs the suite's specs in several processes
    e2e.test) echo k8s.io/kubernetes/test/e2e ;;
    *) echo "k8s.io/kubernetes/cmd/$1" ;;
  esac
}

# progress NAME: shows how many of the package names that go prints have gone by, and passes everything else on.
progress() {
  awk -v name="$1" '
    /^[a-zA-Z0-9][^ :#]*$/ { if (++built % 200 == 0) { printf "  %s: %d packages\n", name, built; fflush() } next }
    /^go: downloading/     { if (++fetched % 50 == 0) { printf "  %s: %d modules fetched\n", name, fetched; fflush() } next }
    { print > "/dev/stderr" }'
}

done=0
for name in "${missing[@]}"; do
  done=$((done + 1))
  ! fresh "$BIN/.$name" "$stamp" || continue # by another, meanwhile
  echo "building $name ($done of ${#missing[@]})"
  start=$SECONDS
  build=(build)
  [ "$name" != e2e.test ] || build=(test -c)
  (cd upstream && CGO_ENABLED=0 GOFLAGS="-buildvcs=false" nice -n 19 go "${build[@]}" -v -ldflags "$flags" -o "$BIN/$name.new" "$(package "$name")") 2>&1 |
    progress "$name"
  mv "$BIN/$name.new" "$BIN/$name"
  echo "$stamp" >"$BIN/.$name"
  echo "  built in $((SECONDS - start)) s"
done

if ! images_fresh "$@"; then
  ./images.sh "$@"
  echo "$images ${1:-}" >"$IMAGES/.images"
fi
