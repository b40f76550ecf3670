#!/usr/bin/env bash
# inside.sh: the first process of the cluster's namespaces; started by cluster.sh alone. It makes a root filesystem of
# which nothing of the machine can be written, starts the components, and ends when one of them does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./state.sh
credentials=$RUN/credentials
cp ../deploy/audit/policy.yaml "$RUN/conf/audit.yaml" # the log is for test/deploy/audit
export HOME=$RUN/home KUBECONFIG=$credentials/admin.kubeconfig

read -r pid _ </proc/self/stat # the machine's /proc still: our process id there
echo "$pid" >"$RUN/pid"

# The machine's root without what is mounted below it: a copy of others' mounts would keep their devices busy.
root=$RUN/root
mount --bind / "$root"
if mountpoint -q /usr; then mount --bind /usr "$root/usr"; fi
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
for dir in var/lib var/log run tmp; do mount --bind "$RUN/$dir" "$root/$dir"; done
mkdir -p "$root$STATE"
mount --bind "$STATE" "$root$STATE"
mount -o remount,bind,ro "$root"

# The kubelet sets these where they differ, for the whole machine: it finds what it wants.
mkdir -p "$RUN/sysctl"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$RUN/sysctl/$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "$root/proc/sys/${setting%=*}"
done

mkdir "$root/tmp/.old"
cd "$root"
pivot_root . tmp/.old
cd /
umount --lazy /tmp/.old
rmdir /tmp/.old
mount --make-rshared / # the kubelet's mounts have to reach pods that ask for it

hostname "$NODE"
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
ip link add node0 type bridge # carries the node's address; not every kernel has dummy devices
ip address add "$NODE_IP/24" dev node0
ip link set node0 up
ip route add default dev node0

declare -A component

# start NAME [FLAG...]: starts a component. Each ends with this script, the first process of its pid namespace.
start() {
  "$@" >>"$LOG/$1.log" 2>&1 &
  component[$!]=$1
}

# wait_for WHAT COMMAND...: until it succeeds, all components live, and three minutes are not over.
wait_for() {
  local what=$1 pid
  shift
  until "$@" >/dev/null 2>&1; do
    for pid in "${!component[@]}"; do
      kill -0 "$pid" 2>/dev/null || stopped "${component[$pid]}"
    done
    if [ $SECONDS -gt 180 ]; then echo "waited 180 s for $what" >&2; exit 1; fi
    sleep 0.1
  done
  echo "$what after $SECONDS s"
}

# stopped NAME: shows why.
stopped() {
  echo "$1 has ended; the end of its log:" >&2
  tail -n 20 "$LOG/$1.log" >&2
  exit 1
}

# The data is a test's: nothing of it must survive a power failure.
start etcd --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level error \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380

start containerd --config "$RUN/conf/containerd.toml"

start_apiserver() {
  start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address="$NODE_IP" \
    --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$credentials/ca.crt" --tls-cert-file="$credentials/apiserver.crt" --tls-private-key-file="$credentials/apiserver.key" \
    --kubelet-client-certificate="$credentials/apiserver-kubelet.crt" --kubelet-client-key="$credentials/apiserver-kubelet.key" \
    --kubelet-preferred-address-types=InternalIP,Hostname \
    --requestheader-client-ca-file="$credentials/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$credentials/front-proxy.crt" --proxy-client-key-file="$credentials/front-proxy.key" \
    --service-account-key-file="$credentials/service-accounts.pub" --service-account-signing-key-file="$credentials/service-accounts.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --audit-policy-file="$RUN/conf/audit.yaml" --audit-log-path="$LOG/audit.log"
}
start_apiserver
wait_for "API server ready" kubectl get --raw /readyz

# Attached volumes are checked every minute by default, which a test would have to wait for.
start kube-controller-manager --kubeconfig="$credentials/kube-controller-manager.kubeconfig" --leader-elect=false \
  --authentication-kubeconfig="$credentials/kube-controller-manager.kubeconfig" \
  --authorization-kubeconfig="$credentials/kube-controller-manager.kubeconfig" \
  --use-service-account-credentials=true --service-account-private-key-file="$credentials/service-accounts.key" \
  --root-ca-file="$credentials/ca.crt" --cluster-signing-cert-file="$credentials/ca.crt" --cluster-signing-key-file="$credentials/ca.key" \
  --flex-volume-plugin-dir="$VOLUME_PLUGINS" --attach-detach-reconcile-sync-period=5s

start kube-scheduler --kubeconfig="$credentials/kube-scheduler.kubeconfig" --leader-elect=false \
  --authentication-kubeconfig="$credentials/kube-scheduler.kubeconfig" --authorization-kubeconfig="$credentials/kube-scheduler.kubeconfig"

start kube-proxy --kubeconfig="$credentials/kube-proxy.kubeconfig" --hostname-override="$NODE" --proxy-mode=iptables \
  --cluster-cidr=10.88.0.0/16 --conntrack-max-per-core=0

wait_for "containerd ready" ctr version
for image in "$IMAGES"/*.tar; do ctr --namespace k8s.io images import "$image" >>"$LOG/images.log" 2>&1; done

start_kubelet() {
  start kubelet --config="$RUN/conf/kubelet.yaml" --kubeconfig="$credentials/kubelet.kubeconfig" --hostname-override="$NODE" \
    --node-ip="$NODE_IP" --cert-dir=/var/lib/kubelet/pki --volume-plugin-dir="$VOLUME_PLUGINS" -v=2
}
start_kubelet

wait_for "node Ready" kubectl wait --for=condition=Ready --timeout=1s "node/$NODE"
wait_for "service account" kubectl get serviceaccount default # a pod is refused until it is there
touch "$RUN/ready"
echo "ready after $SECONDS s"

# A test kills the kubelet or the API server; each is started again, as a machine's supervisor would, when there is no file "hold-NAME".
# Without any other component the cluster is none.
while true; do
  wait -n -p ended "${!component[@]}" || true
  name=${component[$ended]}
  unset "component[$ended]"
  case $name in
    kubelet | kube-apiserver)
      while [ -e "$RUN/hold-$name" ]; do sleep 0.1; done
      "start_${name#kube-}"
      ;;
    *) stopped "$name" ;;
  esac
done
