package why

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// holderRuntime begins the runtime's version on a node that holds volumes and runs no containers.
const holderRuntime = "holder://"

func isHolder(n *v1.Node) bool {
	return n != nil && strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, holderRuntime)
}

// jobOf names the Job that a pod is of.
func jobOf(p *v1.Pod) string {
	if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind == "Job" {
		return owner.Name
	}
	return ""
}

// runtimeNeeded is the problem of a Job's pod on a holder, told from the objects: the event about it expires.
func runtimeNeeded(f *facts) *Problem {
	job := jobOf(f.pod)
	if job == "" || finished(f.pod) || !isHolder(f.node) {
		return nil
	}
	return &Problem{
		Cause: "runtime-needed",
		What:  fmt.Sprintf("The pod is of Job %s, whose command has to run to its end, and a holder never runs commands: node %s has no container runtime. The Job does not complete.", job, f.node.Name),
		Advice: fmt.Sprintf("Run the command yourself: berth exec%s %s -- COMMAND; then kubectl delete job%s %s. Or use a node with a container runtime.",
			namespaceArg(f.pod.Namespace), f.pod.Name, namespaceArg(f.pod.Namespace), job),
	}
}

// notRun says what of the pod's specification a holder leaves alone, where somebody would wait for it; empty when there is
// nothing of that kind.
func notRun(f *facts) string {
	if !isHolder(f.node) || jobOf(f.pod) != "" {
		return ""
	}
	var parts []string
	for i := range f.pod.Spec.InitContainers {
		parts = append(parts, "init container "+f.pod.Spec.InitContainers[i].Name)
	}
	for i := range f.pod.Spec.Containers {
		c := &f.pod.Spec.Containers[i]
		for _, x := range []struct {
			there bool
			what  string
		}{
			{c.StartupProbe != nil, "the startup probe"}, {c.ReadinessProbe != nil, "the readiness probe"}, {c.LivenessProbe != nil, "the liveness probe"},
			{c.Lifecycle != nil && c.Lifecycle.PostStart != nil, "the postStart hook"}, {c.Lifecycle != nil && c.Lifecycle.PreStop != nil, "the preStop hook"},
		} {
			if x.there {
				parts = append(parts, x.what+" of "+c.Name)
			}
		}
	}
	if p := f.pod.Spec.RestartPolicy; p == v1.RestartPolicyNever || p == v1.RestartPolicyOnFailure {
		parts = append(parts, "the command that restartPolicy "+string(p)+" expects to end")
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("A holder never runs commands (node %s has no container runtime); not run: %s. The pod is Ready when its volumes are mounted; `berth exec%s %s -- COMMAND` runs a command with them.",
		f.node.Name, strings.Join(parts, ", "), namespaceArg(f.pod.Namespace), f.pod.Name)
}

// namespaceArg is " -n NAMESPACE" for a command line, empty for the default one.
func namespaceArg(namespace string) string {
	if namespace == "" || namespace == metav1.NamespaceDefault {
		return ""
	}
	return " -n " + namespace
}
