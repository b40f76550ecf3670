#!/usr/bin/env bash
# e2e.sh FOCUS [FLAG...]: runs the specs of Kubernetes' own end-to-end suite that match FOCUS in the running cluster, such as
#   e2e.sh 'External.Storage.*provisioning' -storage.testdriver="$PWD/external-storage.yaml"
# The suite is built by `build.sh e2e`. What it reports is in $BERTH_TEST_KUBERNETES/log/e2e.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/state.sh"
[ $# -gt 0 ] || { sed -n '2,4s/^# \?//p' "$here/e2e.sh"; exit 2; }
[ -x "$BIN/e2e.test" ] || { echo "e2e.sh: run $here/build.sh e2e first" >&2; exit 1; }
focus=$1
shift
mkdir -p "$LOG/e2e"
exec "$here/cluster.sh" in e2e.test --kubeconfig="$RUN/credentials/admin.kubeconfig" --provider=skeleton --host="https://$NODE_IP:6443" \
  --num-nodes=1 --allowed-not-ready-nodes=-1 --report-dir="$LOG/e2e" --ginkgo.no-color --ginkgo.focus="$focus" "$@"
