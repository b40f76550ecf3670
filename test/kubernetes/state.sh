# Where the test cluster lives: sourced by the scripts beside it. Everything that they write is below $STATE, and a
# cgroup of its own name.
STATE=${BERTH_TEST_KUBERNETES:-${XDG_CACHE_HOME:-$HOME/.cache}/berth/test-kubernetes}
mkdir -p "$STATE"
STATE=$(cd "$STATE" && pwd -P) # the same path inside the cluster's mount namespace, where links may lead elsewhere
BIN=$STATE/bin                 # programs that build.sh made
IMAGES=$STATE/images           # container images that build.sh made, imported at each start
RUN=$STATE/run                 # of one life of the cluster; gone after `down`, but for the logs
LOG=$STATE/log
CGROUP=berth-test-$(sha256sum <<<"$STATE" | cut -c1-8)
NODE=node1
NODE_IP=10.99.0.1
API_SERVICE_IP=10.96.0.1 # the first of the service range is always the API server's
export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
VOLUME_PLUGINS=/var/lib/kubelet/volumeplugins # inside; FlexVolume drivers
