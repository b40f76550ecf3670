package why

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/node/holder"
)

// cause is one known reason why a volume does not get on, read off the objects. It returns what is wrong in plain
// words and what to do; what is empty when this is not the cause.
type cause struct {
	name string
	find func(f *facts, vf *volumeFacts) (what, advice string)
}

// causes are asked in order; the first that applies is told.
var causes = []cause{
	{"claim-missing", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.claim != nil || vf.claimName == "" || vf.pv != nil || f.unread("persistentvolumeclaims") {
			return "", ""
		}
		if f.pod != nil && vf.name != "" {
			if v := podVolume(f.pod, vf.name); v != nil && v.Ephemeral != nil {
				return fmt.Sprintf("The claim %q of the pod's ephemeral volume has not been made yet.", vf.claimName),
					"It is made by the ephemeral volume controller; see the pod's events if it stays away."
			}
		}
		return fmt.Sprintf("There is no claim %q in namespace %s.", vf.claimName, vf.namespace),
			"Create the claim, or correct persistentVolumeClaim.claimName in the pod."
	}},
	{"claim-lost", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.claim == nil || vf.claim.Status.Phase != v1.ClaimLost {
			return "", ""
		}
		return fmt.Sprintf("The claim was bound to volume %s, which has been deleted: its data is no longer reachable.", vf.pvName),
			fmt.Sprintf("If the storage behind it is still there, create a PersistentVolume named %s again with the same volume handle; otherwise delete the claim and restore from a backup.", vf.pvName)
	}},
	{"volume-missing", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.claim == nil || vf.pvName == "" || vf.pv != nil || f.unread("persistentvolumes") {
			return "", ""
		}
		return fmt.Sprintf("The claim names volume %s, which does not exist.", vf.pvName),
			"Create that PersistentVolume, or delete the claim and make it again without volumeName."
	}},
	{"claim-in-use", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.claim == nil || vf.claim.DeletionTimestamp == nil {
			return "", ""
		}
		var pods []string
		for i := range vf.users {
			if !finished(&vf.users[i]) {
				pods = append(pods, vf.users[i].Name)
			}
		}
		if len(pods) == 0 {
			return "", ""
		}
		return "The claim is being deleted, and pods still use it: " + strings.Join(pods, ", ") + ".",
			"Delete those pods; the claim goes with the last of them."
	}},
	{"no-default-class", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || f.unread("storageclasses") || storagehelpers.PersistentVolumeClaimHasClass(vf.claim) || slices.ContainsFunc(f.classes, isDefault) {
			return "", ""
		}
		return "The claim names no StorageClass, and no class is the default.",
			"Mark one as the default: kubectl annotate storageclass NAME storageclass.kubernetes.io/is-default-class=true" + classList(f) + " The claim gets it without being made again."
	}},
	{"unknown-class", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || vf.className == "" || vf.class != nil || f.unread("storageclasses") {
			return "", ""
		}
		return fmt.Sprintf("StorageClass %q does not exist.", vf.className),
			"Create it, or delete the claim and make it again with a class that exists." + classList(f)
	}},
	{"no-class-no-volume", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || vf.className != "" || !storagehelpers.PersistentVolumeClaimHasClass(vf.claim) {
			return "", ""
		}
		return `The claim asks for a volume without a class (storageClassName: ""): only an Available PersistentVolume without a class can serve it, and none fits in size, access modes and selector.`,
			"Create such a PersistentVolume, or make the claim again with a class." + classList(f)
	}},
	{"no-consumer", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || !late(vf.class) || f.pod != nil || vf.claim.Annotations[storagehelpers.AnnSelectedNode] != "" {
			return "", ""
		}
		return fmt.Sprintf("Class %s makes a volume when a pod uses the claim, so that the volume is where the pod runs, and no pod uses it.", vf.className),
			fmt.Sprintf("Start a pod with a volume of persistentVolumeClaim.claimName %s. This is no error.", vf.claimName)
	}},
	{"static-only-class", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || vf.class == nil || vf.class.Provisioner != storagehelpers.NotSupportedProvisioner || late(vf.class) && f.pod == nil {
			return "", ""
		}
		return fmt.Sprintf("Class %s makes no volumes (%s), and no Available PersistentVolume of the class fits in size, access modes, selector and node.", vf.className, storagehelpers.NotSupportedProvisioner),
			"Create a PersistentVolume of this class, or free one."
	}},
	{"driver-unknown", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || vf.class == nil || strings.HasPrefix(vf.class.Provisioner, "kubernetes.io/") || late(vf.class) && f.pod == nil {
			return "", ""
		}
		if f.driver(vf.class.Provisioner) != nil || len(f.registeredOn(vf.class.Provisioner)) > 0 || f.unread("csinodes") || provisionerTold(vf) != nil {
			return "", ""
		}
		return fmt.Sprintf("Class %s names the provisioner %s, and no driver of this name has registered.", vf.className, vf.class.Provisioner),
			"Start the driver, or correct the class's provisioner (a class cannot be changed: delete it and create it again)."
	}},
	{"no-free-storage", func(f *facts, vf *volumeFacts) (string, string) {
		if !open(vf) || !late(vf.class) || f.pod == nil || f.pod.Spec.NodeName != "" || vf.claim.Annotations[storagehelpers.AnnSelectedNode] != "" {
			return "", ""
		}
		largest, told := f.largestVolume(vf.class)
		if asked := vf.claim.Spec.Resources.Requests.Storage(); told && asked.Value() > largest {
			return fmt.Sprintf("The claim asks for %s, and the largest volume that class %s has room for is %s.", asked, vf.className, bytesOf(largest)),
				"Ask for less, delete volumes that are not needed, or make the pool larger. The pod goes on as soon as there is room." + f.roomByPlace(vf.class)
		}
		return "", ""
	}},
	{"multi-attach", func(f *facts, vf *volumeFacts) (string, string) {
		if f.pod == nil || f.pod.Spec.NodeName == "" || vf.pv == nil || !oneNodeOnly(vf.pv.Spec.AccessModes) {
			return "", ""
		}
		for _, a := range f.attachmentsOf(vf.pvName) {
			if a.Spec.NodeName != f.pod.Spec.NodeName {
				return fmt.Sprintf("The volume can be on one node at a time and is attached to node %s; the pod is on node %s.", a.Spec.NodeName, f.pod.Spec.NodeName),
					"Delete the pod that uses it on node " + a.Spec.NodeName + usersOn(vf, a.Spec.NodeName) + ". If that node is gone for good, delete its Node object or taint it node.kubernetes.io/out-of-service=:NoExecute: then the volume is detached at once."
			}
		}
		return "", ""
	}},
	{"driver-not-on-node", func(f *facts, vf *volumeFacts) (string, string) {
		driver := vf.driverOf()
		if f.pod == nil || f.pod.Spec.NodeName == "" || vf.pv == nil || vf.pv.Spec.CSI == nil || f.unread("csinodes") {
			return "", ""
		}
		if up, _ := volumesUp(f); up || slices.Contains(f.registeredOn(driver), f.pod.Spec.NodeName) {
			return "", ""
		}
		return fmt.Sprintf("CSI driver %s is not registered on node %s.", driver, f.pod.Spec.NodeName),
			"Start the driver's node part there; it registers through a socket in the plugins_registry directory. The volume is mounted as soon as it has."
	}},
	{"node-not-ready", func(f *facts, vf *volumeFacts) (string, string) {
		if f.pod == nil || f.pod.Spec.NodeName == "" {
			return "", ""
		}
		if ready, _ := holder.Ready(f.pod); ready {
			return "", ""
		}
		if f.node == nil {
			if f.unread("nodes") {
				return "", ""
			}
			return fmt.Sprintf("Node %s, which the pod is assigned to, does not exist.", f.pod.Spec.NodeName), "Start the node, or delete the pod so that it is placed anew."
		}
		for _, c := range f.node.Status.Conditions {
			if c.Type == v1.NodeReady && c.Status != v1.ConditionTrue {
				return fmt.Sprintf("Node %s is not Ready: %s", f.node.Name, c.Message), "Start the node's agent, or delete the pod so that it is placed anew."
			}
		}
		return "", ""
	}},
	{"finalizer", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.pv == nil || vf.pv.DeletionTimestamp == nil || vf.pv.Status.Phase != v1.VolumeBound {
			return "", ""
		}
		return "The volume is being deleted, and a claim is still bound to it.", fmt.Sprintf("Delete claim %s/%s; the volume goes after it.", vf.namespace, vf.claimName)
	}},
	{"volume-elsewhere", volumeElsewhere},
	{"topology-nowhere", topologyNowhere},
	{"provisioner-silent", provisionerSilent},
	{"attacher-silent", attacherSilent},
	{"claim-finalizer", claimFinalizer},
	{"volume-finalizer", volumeFinalizer},
	{"kept", releasedKept},
	{"no-deleter", notDeleted},
	{"no-recycler", notRecycled},
	{"grow-too-large", growTooLarge},
}

// largestVolume is the size in bytes of the largest volume that the class's driver promises on any node; told is false
// when it promises nothing.
func (f *facts) largestVolume(class *storagev1.StorageClass) (largest int64, told bool) {
	if d := f.driver(class.Provisioner); d == nil || !ptr.Deref(d.Spec.StorageCapacity, false) {
		return 0, false
	}
	for i := range f.capacities {
		o := &f.capacities[i]
		switch {
		case o.StorageClassName != class.Name:
		case o.MaximumVolumeSize != nil:
			largest, told = max(largest, o.MaximumVolumeSize.Value()), true
		case o.Capacity != nil:
			largest, told = max(largest, o.Capacity.Value()), true
		}
	}
	return largest, told
}

// open says that the claim is there and has no volume yet.
func open(vf *volumeFacts) bool {
	return vf.claim != nil && vf.claim.Spec.VolumeName == "" && vf.claim.Status.Phase != v1.ClaimLost && vf.pv == nil
}

func late(class *storagev1.StorageClass) bool {
	return class != nil && ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) == storagev1.VolumeBindingWaitForFirstConsumer
}

func isDefault(c storagev1.StorageClass) bool {
	return metav1.HasAnnotation(c.ObjectMeta, "storageclass.kubernetes.io/is-default-class") &&
		c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true"
}

func classList(f *facts) string {
	if len(f.classes) == 0 {
		return " (there is no StorageClass at all)."
	}
	names := make([]string, len(f.classes))
	for i := range f.classes {
		names[i] = f.classes[i].Name
	}
	return " There are: " + strings.Join(names, ", ") + "."
}

func oneNodeOnly(modes []v1.PersistentVolumeAccessMode) bool {
	return !slices.Contains(modes, v1.ReadWriteMany) && !slices.Contains(modes, v1.ReadOnlyMany)
}

// usersOn names the pods of the same namespace that use the claim on the node.
func usersOn(vf *volumeFacts, node string) string {
	var pods []string
	for i := range vf.users {
		if vf.users[i].Spec.NodeName == node {
			pods = append(pods, vf.users[i].Name)
		}
	}
	if len(pods) == 0 {
		return ""
	}
	return " (" + strings.Join(pods, ", ") + ")"
}

func podVolume(p *v1.Pod, name string) *v1.Volume {
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Name == name {
			return &p.Spec.Volumes[i]
		}
	}
	return nil
}

// wording is a known error message: what it means and what to do. $1 is what the expression's group matched.
type wording struct {
	name   string
	match  *regexp.Regexp
	what   string
	advice string
}

func say(name, match, what, advice string) wording {
	return wording{name, regexp.MustCompile("(?is)" + match), what, advice}
}

const unboundClaim = "unbound-claim"

// wordings are tried in order; the first that matches is told.
var wordings = []wording{
	say("runtime-needed", `need a container runtime`, "The pod's own command has to run to its end (a Job), and a holder never runs commands: the node has no container runtime. The Job does not complete.",
		"Run the command yourself with `berth exec`, or use a node with a container runtime."),
	say("quota", `exceeded quota: ([^,]+)`, "The namespace's ResourceQuota $1 does not allow any more.", "Raise the quota (kubectl describe quota) or delete what is not needed."),

	say("webhook", `admission webhook "([^"]+)" denied the request`, "The admission webhook $1 refused it: a rule of this cluster.", "Do as its message says, or ask who runs the webhook (kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations)."),
	say("webhook-down", `failed calling webhook "([^"]+)"`, "The admission webhook $1 does not answer, and without it nothing is admitted.", "Start the webhook's service, or take its configuration away."),

	say("claim-not-found", `persistentvolumeclaim "([^"]+)" not found`, `There is no claim "$1".`, "Create the claim, or correct persistentVolumeClaim.claimName in the pod."),
	say("claim-deleting", `persistentvolumeclaim "([^"]+)" is being deleted`, `The claim "$1" is being deleted; no new pod may use it.`, "Wait until it is gone and create it again, or use another claim."),
	say("claim-in-use-by-one", `ReadWriteOncePod access mode already in-use|is ReadWriteOncePod and `, "The claim's access mode is ReadWriteOncePod: one pod at a time, and another pod has it.", "Delete the other pod, or use ReadWriteOnce."),
	say(unboundClaim, `unbound immediate PersistentVolumeClaims|PreBind plugin "?VolumeBinding`, "A claim of the pod has no volume yet.", "See the claim: berth why pvc/NAME."),
	say("no-free-storage", `not have enough free storage`, "No node that suits the pod has enough free storage for the claim.", "Ask for less, delete volumes that are not needed, or make the pool larger."),
	say("no-matching-volume", `didn't find available persistent volumes to bind`, "On no node is there a volume that fits the pod's claims, or may one be made (topology of the class, node selected before).",
		"Compare size, class, access modes and selector with kubectl get pv, and the class's allowedTopologies with the nodes' labels."),
	say("node-affinity-conflict", `didn't match PersistentVolume's node affinity|volume node affinity conflict|node affinity doesn't match`, "The volume can be used on certain nodes only, and the pod cannot go there.",
		"Compare kubectl get pv -o yaml (spec.nodeAffinity) with the pod's nodeSelector and the nodes' labels; a node that has the volume may be cordoned or gone."),
	say("volume-limit", `exceed max volume count|volume attachment limit`, "The driver's limit of volumes on the node is reached.", "Delete pods or volumes there, or add a node."),
	say("cordoned", `were unschedulable`, "The nodes are cordoned.", "kubectl uncordon NODE"),
	say("tainted", `untolerated taint`, "The nodes have taints that the pod does not tolerate.", "Remove the taint (kubectl taint nodes NODE KEY-) or add a toleration; a node that is not Ready is tainted, too."),
	say("node-selector", `didn't match Pod's node affinity/selector`, "No node has the labels that the pod asks for.", "Label a node, or change the pod's nodeSelector or node affinity."),
	say("insufficient", `Insufficient ([\w./-]+)`, "No node has enough $1 left for the pod's requests.", "Lower the pod's requests, or delete other pods."),
	say("too-many-pods", `Too many pods`, "The nodes have as many pods as they take.", "Delete pods, or add a node."),
	say("not-supported", `which Berth's scheduler does not support`, "The pod demands something of the scheduler that Berth does not have.", "Do as the message says."),
	say("no-nodes", `no nodes available to schedule`, "There is no node.", "Start one: berth up, or berth node."),

	say("source-not-ready", `error getting handle for DataSource Type \w+ by Name ([^:\s]+)`, "What the claim is made from, $1, is not ready, or not there.",
		"See it: berth why volumesnapshot/NAME, or pvc/NAME for a clone. The volume is made as soon as it is ready."),
	say("too-small", `too few (?:for|bytes)|needs at least [0-9.]+ ?[KMGT]i?B|smaller than the (?:smallest|minimum)`, "The claim asks for less than the smallest volume that the driver makes.",
		"Ask for more: delete the claim and make it again with a larger request."),
	say("grow-unmounted", `grown? only while it is not mounted|volume can't be expanded while it is in use`, "The volume cannot grow while it is mounted; it works on at its present size.",
		"Delete the pods that use it, or scale them to 0 and back: it grows when it is mounted next."),
	say("pool-full", `ResourceExhausted|out of range|OutOfRange|no space left on device|not enough (?:free )?space|beyond the (?:free|pool)|exceeds the pool|pool .*(?:full|free)`,
		"The storage has no room for a volume of this size.", "Ask for less, delete volumes that are not needed, or make the pool larger (berth status shows what is free)."),
	say("access-mode", `access ?mode|MULTI_NODE|SINGLE_NODE`, "The driver cannot serve the access mode that the claim asks for.", "Ask for an access mode that the driver has; a block volume is ReadWriteOnce or ReadWriteOncePod (ReadWriteMany needs a shared filesystem such as NFS)."),
	say("class-parameter", `(?:unknown|invalid|unsupported) (?:class )?parameter`, "The StorageClass has a parameter that the driver does not take.", "Correct the class (it cannot be changed: delete it and create it again)."),
	say("filesystem-not-served", `fsType "([^"]*)" is not served`, `The driver does not make filesystem "$1".`, "Correct csi.storage.k8s.io/fstype in the class (it cannot be changed: delete it and create it again), and make the claim again."),
	say("class-not-found", `storageclass[^ ]* "([^"]+)" not found`, `StorageClass "$1" does not exist.`, "Create it, or make the claim again with a class that exists (kubectl get storageclass)."),

	say("multi-attach", `Multi-Attach error`, "The volume can be on one node at a time and is still attached to another.", "Delete the pod that uses it there. If that node is gone for good, delete its Node object or taint it node.kubernetes.io/out-of-service=:NoExecute."),
	say("secret-missing", `secrets? "([^"]+)" (?:not found|does not exist)`, `There is no secret "$1".`, "Create it in the pod's namespace, or mark the volume optional. The volume is mounted as soon as it is there."),
	say("configmap-missing", `configmaps? "([^"]+)" (?:not found|does not exist)`, `There is no configMap "$1".`, "Create it in the pod's namespace, or mark the volume optional. The volume is mounted as soon as it is there."),
	say("key-missing", `references non-existent (?:secret|config) key:? ?(\S*)|(?:secret|configMap) "[^"]+" has no key "([^"]+)"`, "A key that the volume names is not in the secret or configMap: $1", "Add the key, or correct items in the pod."),
	say("not-served", `does not serve|a node that serves volumes of type|no volume plugin matched`, "This node does not serve volumes of this type.", "Use a claim, or a volume type that is served (docs list them)."),
	say("driver-not-registered", `driver name ([\w.-]+) not found in the list of registered CSI drivers|driver ([\w.-]+) is not registered|CSINode \S+ does not contain driver ([\w.-]+)`, "The CSI driver is not registered on the node.", "Start the driver's node part; the volume is mounted as soon as it has registered."),
	say("wrong-filesystem", `wrong fs type|bad superblock|superblock|unknown filesystem type|fsck|holds (?:a|an) |already (?:formatted|contains)|different filesystem`,
		"The device does not hold the filesystem that was asked for, or a broken one.", "Nothing is formatted over data. Compare fsType in the class or PersistentVolume with what is on the device (blkid); repair it with fsck while no pod uses it."),
	say("mount-option", `bad (?:mount )?option|unknown mount option|mount option`, "A mount option is not known to the filesystem.", "Correct mountOptions in the PersistentVolume or class."),
	say("host-path", `hostPath type check failed|is not a (?:directory|file|socket)`, "What hostPath names is not there, or of another type.", "Create it on the node, or correct hostPath.path and hostPath.type."),
	say("no-loop-device", `no (?:free )?loop device|loop.*(?:ENXIO|ENODEV|no such device)`, "The host has no free loop device.", "Load the module (modprobe loop), or raise max_loop."),
	say("local-path-missing", `path "([^"]+)" does not exist`, "There is no $1 on the node.", "Make it or mount it there, or correct the path: delete the PersistentVolume and create it again. The volume is mounted as soon as it is there."),
	say("volume-not-found", `code = NotFound|volume .*(?:does not exist|not found|no such)|no such volume|invalid volume (?:id|handle)`, "The driver does not know the volume that the PersistentVolume names.",
		"Compare spec.csi.volumeHandle with what the storage has. If the data is gone, delete claim and volume; nothing is made in its place by itself."),
	say("attacher-silent", `timed out waiting for external-attacher of ([\w.-]+) CSI driver`, "The external-attacher of $1 has not done it in time.", "See whether the driver's controller runs, and the log of its csi-attacher."),
	say("attributes-class-missing", `VAC "([^"]+)" does not exist`, `There is no VolumeAttributesClass "$1".`, "Create it, or name another in the claim's spec.volumeAttributesClassName."),
	say("sandbox", `failed to (?:create|set ?up|start) (?:pod )?(?:sandbox|network)|network plugin is not ready|cni`, "The pod's network or sandbox could not be made. Its volumes are mounted.", "See the node's network plugin (CNI) and container runtime."),
	say("driver-slow", `DeadlineExceeded|deadline exceeded|timed out|timeout|Aborted`, "The driver has not answered in time, or is still busy with an earlier call for this volume.", "Nothing to do if it passes: it is tried again. Otherwise look at the driver's log, and restart the driver."),
	say("driver-down", `Unavailable|connection refused|connection reset|broken pipe|transport|EOF|csi\.sock`, "The driver cannot be reached.", "Start the driver, and look at its log; the step is tried again as soon as it answers."),
	say("throttled", `RequestLimitExceeded|RateExceeded|TooManyRequests|rate ?limit|throttl`, "The storage is asked too often, and refuses for a while.", "Nothing to do if it passes: it is tried again, less and less often. Otherwise ask for a higher limit, or give the driver fewer workers."),
	say("forbidden", `Unauthenticated|PermissionDenied|Unauthorized|forbidden|permission denied`, "Permission was refused.", "Look at the secrets that the class names, and at the driver's role."),
	say("provisioning-failed", `provisioning failed for PVC`, "The driver could not make the volume for the chosen node; the scheduler chooses again.", "See the claim's events for the driver's own words."),
	say("no-deleter", `no deletable volume plugin matched`, "The reclaim policy is Delete, and nothing here can delete the storage of a volume of this type: it was made by hand.",
		"Remove the data by hand, then kubectl delete pv NAME. Give such volumes the reclaim policy Retain."),
	say("no-recycler", `No recycler plugin found`, "The reclaim policy is Recycle, and nothing here recycles a volume of this type.",
		"Empty it by hand, then delete the PersistentVolume and create it again. Give such volumes the reclaim policy Retain."),
	say("pod-gone-claim", `bound to non-existent persistentvolume`, "The claim was bound to a volume that has been deleted.", "See the claim: berth why pvc/NAME."),
}

// inPlainWords finds the meaning of an error message; nil when it is not known.
func inPlainWords(message string) *Problem {
	for _, w := range wordings {
		m := w.match.FindStringSubmatch(message)
		if m == nil {
			continue
		}
		group := ""
		for _, g := range m[1:] {
			if g != "" {
				group = g
				break
			}
		}
		return &Problem{Cause: w.name, What: strings.ReplaceAll(w.what, "$1", group), Advice: w.advice}
	}
	return nil
}
