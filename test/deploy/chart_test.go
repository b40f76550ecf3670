package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"berth.io/berth/test/deploy/chart"

	"os"
)

const (
	root     = "../.."
	chartDir = root + "/deploy/helm/berth"
)

// everything switches on whatever the chart can make.
const everything = `
snapshotClasses: {byJob: true}
imagePullSecrets: [{name: pull}]
image: {digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}
driver: {nodeAllocatableUpdatePeriodSeconds: 30}
storageClasses:
  - name: fast
    parameters: {csi.storage.k8s.io/fstype: xfs}
    mountOptions: [noatime]
    allowedTopologies: [{matchLabelExpressions: [{key: topology.block.csi.berth.io/node, values: [a, b]}]}]
controller:
  kubeAPIQPS: 100
  kubeAPIBurst: 200
  featureGates: {CSIVolumeGroupSnapshot: true}
  extraCreateMetadata: true
  defaultFSType: xfs
  podLabels: {team: storage}
  podAnnotations: {note: "1"}
  extraArgs: [--strict-topology]
node:
  pool: {size: 50Gi}
  discovery:
    enabled: true
    jobs: true
    config: {storageClassMap: "x: {hostDir: /mnt/x, mountDir: /mnt/x}"}
    directories: [{hostDir: /mnt/x, mountDir: /mnt/x}]
  canary: {enabled: true, tag: v2}
  hostNetwork: true
  podLabels: {team: storage}
  podAnnotations: {note: "1"}
metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}}, prometheusRule: {enabled: true, labels: {release: prometheus}}, dashboard: {enabled: true}}
rbac: {secretNamespaces: [vault]}
`

// cases are values with which the chart must make what the API takes.
var cases = map[string]string{
	"defaults":                     "",
	"everything":                   everything,
	"least":                        "{namespace: {create: false}, rbac: {create: false}, metrics: {annotations: false, service: false}, snapshotClasses: {create: false}, storageClasses: [], node: {flexVolume: {enabled: false}}}",
	"one replica without election": "controller: {replicas: 1, leaderElection: {enabled: false}}",
	"gray update by hand":          "node: {updateStrategy: {type: OnDelete}}",
	"half of the nodes at once":    "node: {updateStrategy: {maxUnavailable: 50%}}",
	"a disk for the pool":          "node: {pool: {device: /dev/disk/by-id/nvme-0}}",
	"an original's ConfigMap":      "node: {discovery: {enabled: true, existingConfigMap: local-provisioner-config, directories: [{hostDir: /mnt/a, mountDir: /mnt/b}]}}",
}

// TestLint: Helm has nothing to say against the chart but that it has no icon.
func TestLint(t *testing.T) {
	for name, text := range cases {
		t.Run(name, func(t *testing.T) {
			version, err := common.ParseKubeVersion(chart.KubeVersion)
			if err != nil {
				t.Fatal(err)
			}
			found := lint.RunAll(chartDir, values(t, text), "default", lint.WithKubeVersion(version))
			for _, m := range found.Messages {
				if m.Severity > support.InfoSev {
					t.Error(m)
				}
			}
		})
	}
}

// TestObjects decodes all that the chart makes as the API server would with strict field validation, and looks at what holds for each.
func TestObjects(t *testing.T) {
	for name, text := range cases {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, u := range render(t, values(t, text)) {
				id := fmt.Sprintf("%s %s/%s", u.GroupVersionKind().GroupKind(), u.GetNamespace(), u.GetName())
				if seen[id] {
					t.Errorf("%s is made twice", id)
				}
				seen[id] = true
				strict(t, u)
				if u.GetLabels()["app.kubernetes.io/part-of"] != "berth" {
					t.Errorf("%s lacks the labels", id)
				}
				if namespaced(u) && u.GetNamespace() == "" {
					t.Errorf("%s has no namespace: it would go where the release is", id)
				}
			}
			if len(seen) == 0 {
				t.Error("nothing is made")
			}
		})
	}
}

// ofOthers are the kinds that client-go does not have; the API server's own test is apply_test.go.
var ofOthers = []string{"VolumeSnapshotClass", "VolumeGroupSnapshotClass", "ServiceMonitor", "PrometheusRule"}

func strict(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	if slices.Contains(ofOthers, u.GetKind()) {
		return
	}
	text, err := yaml.Marshal(u.Object)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	if _, _, err := decoder.Decode(text, nil, nil); err != nil {
		t.Errorf("%s %s: %v", u.GetKind(), u.GetName(), err)
	}
}

func namespaced(u *unstructured.Unstructured) bool {
	return slices.Contains([]string{"ServiceAccount", "Role", "RoleBinding", "Deployment", "DaemonSet", "Service", "ConfigMap", "Job", "PodDisruptionBudget", "ServiceMonitor", "PrometheusRule"}, u.GetKind())
}

// TestNamespace: it is made where the release is elsewhere, and left to Helm where the release is in it.
func TestNamespace(t *testing.T) {
	for release, want := range map[string]bool{"default": true, "berth-system": false} {
		objects := renderIn(t, release, nil)
		made := slices.ContainsFunc(objects, func(u *unstructured.Unstructured) bool { return u.GetKind() == "Namespace" })
		if made != want {
			t.Errorf("release in %s: namespace made: %t, want %t", release, made, want)
		}
	}
}

// TestSameAsStandalone: the driver and its classes are those of `berth up`, so that manifests work in both.
func TestSameAsStandalone(t *testing.T) {
	objects := render(t, nil)
	for _, file := range []string{"berth.yaml", "classes.yaml"} {
		text, err := os.ReadFile(root + "/internal/standalone/manifests/" + file)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := chart.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range theirs {
			i := slices.IndexFunc(objects, func(u *unstructured.Unstructured) bool {
				return u.GroupVersionKind() == want.GroupVersionKind() && u.GetName() == want.GetName()
			})
			if i < 0 {
				t.Errorf("the chart has no %s %s", want.GetKind(), want.GetName())
				continue
			}
			got := objects[i].DeepCopy()
			got.SetLabels(nil)
			if !equality.Semantic.DeepEqual(got.Object, want.Object) {
				t.Errorf("%s %s: the chart has\n%v\n`berth up` has\n%v", want.GetKind(), want.GetName(), got.Object, want.Object)
			}
		}
	}
}

// TestRefused: what cannot work is an error that names the value.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct{ values, says string }{
		"a misspelt key":                    {"controler: {}", "controler"},
		"a misspelt key further down":       {"node: {kubeletdir: /var/lib/kubelet}", "kubeletdir"},
		"a relative directory":              {"node: {dataDir: berth}", "/node/dataDir"},
		"a directory that climbs":           {"node: {kubeletDir: /var/../etc}", "/node/kubeletDir"},
		"an unknown controller":             {"controller: {controllers: [provisioner]}", "/controller/controllers/0"},
		"no controller":                     {"controller: {controllers: [block, -block]}", "leaves nothing to do"},
		"two leaders":                       {"controller: {leaderElection: {enabled: false}}", "controller.leaderElection.enabled"},
		"discovery without configuration":   {"node: {discovery: {enabled: true}}", "node.discovery.config"},
		"discovery without directories":     {"node: {discovery: {enabled: true, existingConfigMap: x}}", "node.discovery.directories"},
		"a number that is a text":           {"controller: {workerThreads: many}", "/controller/workerThreads"},
		"a parameter that is no text":       {"storageClasses: [{name: a, parameters: {a: 1}}]", "/storageClasses/0/parameters/a"},
		"an unknown policy":                 {"snapshotClasses: {deletionPolicy: Keep}", "/snapshotClasses/deletionPolicy"},
		"a digest that is none":             {"image: {digest: latest}", "/image/digest"},
		"affinity beside a canary":          {"node: {canary: {enabled: true}, affinity: {podAffinity: {}}}", "node.affinity"},
		"a monitor without a service":       {"metrics: {service: false, serviceMonitor: {enabled: true}}", "metrics.serviceMonitor.enabled"},
		"a pool within the kubelet's":       {"node: {dataDir: /var/lib/kubelet/berth}", "node.dataDir"},
		"the kubelet within the pool's":     {"node: {kubeletDir: /var/lib/berth/kubelet}", "node.dataDir"},
		"one directory for both":            {"node: {dataDir: /srv, kubeletDir: /srv}", "node.dataDir"},
		"disks within the kubelet's":        {"node: {discovery: {enabled: true, existingConfigMap: x, directories: [{hostDir: /mnt/a, mountDir: /var/lib/kubelet/disks}]}}", "node.discovery.directories"},
		"a gate that is neither on nor off": {"controller: {featureGates: {A: maybe}}", "/controller/featureGates/A"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := chart.Render(load(t), "default", values(t, c.values))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %s", err, c.says)
			}
		})
	}
}

// TestWorkloads looks at what the nodes' safety depends on.
func TestWorkloads(t *testing.T) {
	set := workload[appsv1.DaemonSet](t, render(t, nil), "DaemonSet", "berth-node")
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged {
		t.Error("the agent is not privileged: Bidirectional mounts are refused")
	}
	for path, want := range map[string]corev1.MountPropagationMode{"/var/lib/kubelet": corev1.MountPropagationBidirectional, "/var/lib/berth": corev1.MountPropagationBidirectional, "/dev": corev1.MountPropagationHostToContainer} {
		i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path })
		if i < 0 || c.VolumeMounts[i].MountPropagation == nil || *c.VolumeMounts[i].MountPropagation != want {
			t.Errorf("%s: want it mounted %s", path, want)
			continue
		}
		v := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == c.VolumeMounts[i].Name })
		if v < 0 || pod.Volumes[v].HostPath == nil || pod.Volumes[v].HostPath.Path != path {
			t.Errorf("%s is not the host's", path)
		}
	}
	if u := set.Spec.UpdateStrategy.RollingUpdate; u == nil || u.MaxSurge == nil || u.MaxSurge.IntValue() != 0 {
		t.Error("a surge would start a second owner of the pool")
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0].Operator != corev1.TolerationOpExists || pod.Tolerations[0].Key != "" {
		t.Error("the agent does not run on every node")
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority class %q", pod.PriorityClassName)
	}
	controller := workload[appsv1.Deployment](t, render(t, nil), "Deployment", "berth-controller").Spec.Template.Spec
	if s := controller.SecurityContext; s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
		t.Error("the controller runs as root")
	}
	if s := controller.Containers[0].SecurityContext; !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Error("the controller has more than it needs")
	}
	for _, p := range []corev1.PodSpec{pod, controller} {
		c := p.Containers[0]
		if c.LivenessProbe == nil || c.ReadinessProbe == nil || c.StartupProbe == nil {
			t.Error("a probe is missing")
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
			t.Error("requests or limits are missing")
		}
	}
}

// TestNothingIsMountedWithinWhatReachesTheHost: what is mounted within a directory of Bidirectional propagation is mounted on the host, too, and again by
// the next start of the agent, which then finds twice as many: after fourteen of them a node had 16 383 mounts of one directory, and runc took minutes.
func TestNothingIsMountedWithinWhatReachesTheHost(t *testing.T) {
	for name, c := range map[string]struct {
		values  string
		plugins bool // are mounted
	}{
		"as it is":                                {"", true},
		"plugins in the kubelet's":                {"node: {flexVolume: {pluginDir: /var/lib/kubelet/volumeplugins}}", false},
		"plugins in another kubelet's":            {"node: {kubeletDir: /data/kubelet, flexVolume: {pluginDir: /data/kubelet/plugins/volume/exec}}", false},
		"plugins in the pool's":                   {"node: {flexVolume: {pluginDir: /var/lib/berth/exec}}", false},
		"plugins beside, with the name's letters": {"node: {flexVolume: {pluginDir: /var/lib/kubelet-plugins}}", true},
		"disks": {"node: {discovery: {enabled: true, existingConfigMap: x, directories: [{hostDir: /mnt/a, mountDir: /mnt/a}]}}", true},
	} {
		t.Run(name, func(t *testing.T) {
			agent := workload[appsv1.DaemonSet](t, render(t, values(t, c.values)), "DaemonSet", "berth-node").Spec.Template.Spec.Containers[0]
			plugins := false
			for _, m := range agent.VolumeMounts {
				plugins = plugins || m.Name == "flexvolume"
				for _, outer := range agent.VolumeMounts {
					if outer.MountPropagation != nil && *outer.MountPropagation == corev1.MountPropagationBidirectional && strings.HasPrefix(m.MountPath, outer.MountPath+"/") {
						t.Errorf("%s is mounted within %s", m.MountPath, outer.MountPath)
					}
				}
			}
			if plugins != c.plugins {
				t.Errorf("the directory of FlexVolume drivers is mounted: %v", plugins)
			}
			if !slices.ContainsFunc(agent.Args, func(a string) bool { return strings.HasPrefix(a, "--install-flexvolume=") }) {
				t.Error("the drivers are not installed")
			}
		})
	}
}

// TestCanary: each node has one of the two DaemonSets, and the canary's end does not remove FlexVolume drivers.
func TestCanary(t *testing.T) {
	objects := render(t, values(t, "{image: {tag: v1}, node: {canary: {enabled: true, tag: v2}}}"))
	main, canary := workload[appsv1.DaemonSet](t, objects, "DaemonSet", "berth-node"), workload[appsv1.DaemonSet](t, objects, "DaemonSet", "berth-node-canary")
	for _, c := range []struct {
		set             *appsv1.DaemonSet
		operator, image string
		owner           string
	}{{main, "NotIn", "berth:v1", "--daemonset=berth-node"}, {canary, "In", "berth:v2", "--daemonset="}} {
		spec := c.set.Spec.Template.Spec
		e := spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchExpressions[0]
		if string(e.Operator) != c.operator || e.Key != "berth.io/canary" || !slices.Equal(e.Values, []string{"true"}) {
			t.Errorf("%s: on nodes %v", c.set.Name, e)
		}
		if got := spec.Containers[0].Image; got != c.image {
			t.Errorf("%s: image %s, want %s", c.set.Name, got, c.image)
		}
		if !slices.Contains(spec.Containers[0].Args, c.owner) {
			t.Errorf("%s: args %v, want %s", c.set.Name, spec.Containers[0].Args, c.owner)
		}
		if c.set.Spec.Selector.MatchLabels["berth.io/daemonset"] != c.set.Name {
			t.Errorf("%s: its selector would take the other's pods", c.set.Name)
		}
	}
}

// TestDriverAllows what the program needs: attach, capacity, and what fsGroup does.
func TestDriverAllows(t *testing.T) {
	d := workload[storagev1.CSIDriver](t, render(t, nil), "CSIDriver", "block.csi.berth.io")
	if !*d.Spec.AttachRequired || !*d.Spec.StorageCapacity || *d.Spec.FSGroupPolicy != storagev1.FileFSGroupPolicy {
		t.Errorf("spec %+v", d.Spec)
	}
}
