#!/usr/bin/env bash
# credentials.sh DIR: a certificate authority, what it signs for each component, and a kubeconfig for each client. Made
# anew for each life of the cluster, so that nothing expires.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./state.sh
dir=$1
mkdir -p "$dir"
cd "$dir"
key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

openssl req -x509 "${key[@]}" -keyout ca.key -out ca.crt -subj /CN=berth-test-kubernetes -days 30 2>/dev/null

# sign NAME SUBJECT EXTENSION...
sign() {
  local name=$1 subject=$2 extensions=() extension
  shift 2
  for extension in "$@"; do extensions+=(-addext "$extension"); done
  openssl req -x509 -CA ca.crt -CAkey ca.key "${key[@]}" -keyout "$name.key" -out "$name.crt" -subj "$subject" -days 30 \
    -addext basicConstraints=critical,CA:FALSE "${extensions[@]}" 2>/dev/null
}
server() { sign "$1" "$2" "extendedKeyUsage=serverAuth" "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:$NODE_IP,$3"; }
client() { sign "$1" "$2" "extendedKeyUsage=clientAuth"; }

server apiserver /CN=kube-apiserver "IP:$API_SERVICE_IP,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
server kubelet-server "/O=system:nodes/CN=system:node:$NODE" "DNS:$NODE"
client apiserver-kubelet /O=system:masters/CN=kube-apiserver
client front-proxy /CN=front-proxy
client admin /O=system:masters/CN=admin
client kube-controller-manager /CN=system:kube-controller-manager
client kube-scheduler /CN=system:kube-scheduler
client kube-proxy /CN=system:kube-proxy
client kubelet "/O=system:nodes/CN=system:node:$NODE"
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out service-accounts.key 2>/dev/null
openssl pkey -in service-accounts.key -pubout -out service-accounts.pub

for user in admin kube-controller-manager kube-scheduler kube-proxy kubelet; do
  cat >"$user.kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://$NODE_IP:6443", certificate-authority: $dir/ca.crt}}]
users: [{name: $user, user: {client-certificate: $dir/$user.crt, client-key: $dir/$user.key}}]
contexts: [{name: test, context: {cluster: test, user: $user}}]
current-context: test
END
done
