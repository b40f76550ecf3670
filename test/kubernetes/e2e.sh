#!/usr/bin/env bash
# e2e.sh FOCUS [FLAG...]: runs the specs of Kubernetes' own end-to-end suite that match FOCUS in the running cluster, such as
#   e2e.sh 'External.Storage.*provisioning' -storage.testdriver="$PWD/external-storage.yaml"
# $PROCS at once (6 by default), for $TIMEOUT at most (3h); those marked Serial come alone, last. The suite is built by `build.sh e2e`. What it reports is in
# $BERTH_TEST_KUBERNETES/log/e2e; $REPORT names the file there (default report.json).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/state.sh"
[ $# -gt 0 ] || { sed -n '2,5s/^# \?//p' "$here/e2e.sh"; exit 2; }
[ -x "$BIN/e2e.test" ] || { echo "e2e.sh: run $here/build.sh e2e first" >&2; exit 1; }
focus=$1
shift
mkdir -p "$LOG/e2e"
flags=()
for flag in "$@"; do
  # The node does not see all of this machine's files.
  if [[ $flag == -storage.testdriver=* ]]; then
    seen=$RUN/testdriver-${REPORT:-report.json}.yaml # of this run: others may go on
    cp "${flag#*=}" "$seen"
    flag=-storage.testdriver=$seen
  fi
  flags+=("$flag")
done
# The cluster may be older than the suite's images.
for image in "$IMAGES"/*.tar; do "$here/cluster.sh" in ctr --namespace k8s.io images import "$image" >>"$LOG/images.log" 2>&1; done
# Some specs stop and start the kubelet over SSH.
if ! "$here/cluster.sh" in pgrep --exact sshd >/dev/null; then
  (cd "$here/upstream" && CGO_ENABLED=0 go build -o "$BIN/sshd" ./sshd)
  mkdir -p "$RUN/ssh"
  cp "$here"/testdata/ssh/* "$RUN/ssh/"
  setsid "$here/cluster.sh" in sshd "$NODE_IP:22" "$RUN/ssh" </dev/null >"$LOG/sshd.log" 2>&1 &
  until grep -qs ready "$LOG/sshd.log"; do
    kill -0 $! || { cat "$LOG/sshd.log" >&2; exit 1; }
    sleep 0.1
  done
fi
export KUBE_SSH_KEY_PATH=$RUN/ssh/key KUBE_SSH_USER=root
exec "$here/cluster.sh" in ginkgo run --procs="${PROCS:-6}" --no-color --timeout="${TIMEOUT:-3h}" --focus="$focus" --skip="${SKIP:-^$}" \
  --output-dir="$LOG/e2e" --json-report="${REPORT:-report.json}" "$BIN/e2e.test" -- \
  --kubeconfig="$RUN/credentials/admin.kubeconfig" --provider=skeleton --host="https://$NODE_IP:6443" \
  --num-nodes=1 --allowed-not-ready-nodes=-1 "${flags[@]}"
