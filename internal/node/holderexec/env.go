package holderexec

import (
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// environment fills s.Env and s.Unset and returns the container's own variables. The command starts with a plain
// environment, as in a container, and not with the caller's.
func (s *Spec) environment(pod *v1.Pod, c *v1.Container) map[string]string {
	s.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "HOSTNAME=" + pod.Name,
	}
	if term := os.Getenv("TERM"); term != "" {
		s.Env = append(s.Env, "TERM="+term)
	}
	env := map[string]string{}
	for _, v := range c.Env {
		value, ok := v.Value, true
		switch {
		case v.ValueFrom == nil:
			value = expand(value, env)
		case v.ValueFrom.FieldRef != nil:
			value, ok = field(pod, v.ValueFrom.FieldRef.FieldPath)
		default:
			ok = false
		}
		if !ok {
			s.Unset = append(s.Unset, v.Name)
			continue
		}
		env[v.Name] = value
		s.Env = append(s.Env, v.Name+"="+value)
	}
	if len(c.EnvFrom) > 0 {
		s.Unset = append(s.Unset, "envFrom")
	}
	return env
}

// field reads the fields that an env variable may show.
func field(pod *v1.Pod, path string) (string, bool) {
	if rest, ok := strings.CutPrefix(path, "metadata.labels['"); ok {
		key, ok := strings.CutSuffix(rest, "']")
		return pod.Labels[key], ok
	}
	if rest, ok := strings.CutPrefix(path, "metadata.annotations['"); ok {
		key, ok := strings.CutSuffix(rest, "']")
		return pod.Annotations[key], ok
	}
	switch path {
	case "metadata.name":
		return pod.Name, true
	case "metadata.namespace":
		return pod.Namespace, true
	case "metadata.uid":
		return string(pod.UID), true
	case "spec.nodeName":
		return pod.Spec.NodeName, true
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, true
	case "status.hostIP":
		return pod.Status.HostIP, true
	case "status.podIP":
		return pod.Status.PodIP, true
	}
	return "", false
}

// expand replaces $(NAME) by a variable defined before; $$ is a $, and an unknown name stays as it is written.
func expand(text string, env map[string]string) string {
	out, _ := expansion(text, func(name string) (string, bool) {
		if v, ok := env[name]; ok {
			return v, true
		}
		return "$(" + name + ")", true
	})
	return out
}

// expandStrict is expand for subPathExpr: an unknown name is an error, for the path would be a wrong one.
func expandStrict(text string, env map[string]string) (string, error) {
	return expansion(text, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
}

// expansion is the syntax that both share.
func expansion(text string, value func(name string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			text = after[1:]
			continue
		case strings.HasPrefix(after, "("):
			if name, rest, closed := strings.Cut(after[1:], ")"); closed {
				v, ok := value(name)
				if !ok {
					return "", fmt.Errorf("variable %q is not set", name)
				}
				b.WriteString(v)
				text = rest
				continue
			}
		}
		b.WriteByte('$')
		text = after
	}
}
