package intree

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// downward shows fields of the pod and resources of its containers.
func downward(items []v1.DownwardAPIVolumeFile, pod *v1.Pod, allocatable v1.ResourceList, defaultMode *int32) (payload, error) {
	files := payload{}
	var errs []error
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = podField(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = containerResource(pod, item.ResourceFieldRef, allocatable)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("file %q: %w", item.Path, err))
			continue
		}
		files[path.Clean(item.Path)] = file{data: []byte(value), mode: fileMode(defaultMode, item.Mode)}
	}
	return files, errors.Join(errs...)
}

// podField reads the fields that a downwardAPI volume may show (upstream's fieldpath.ExtractFieldPathAsString).
func podField(pod *v1.Pod, field string) (string, error) {
	if key, ok := subscript(field, "metadata.annotations"); ok {
		return pod.Annotations[key], nil
	}
	if key, ok := subscript(field, "metadata.labels"); ok {
		return pod.Labels[key], nil
	}
	switch field {
	case "metadata.annotations":
		return quotedLines(pod.Annotations), nil
	case "metadata.labels":
		return quotedLines(pod.Labels), nil
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	}
	return "", fmt.Errorf("unsupported field path %q", field)
}

// subscript parses "<prefix>['key']".
func subscript(field, prefix string) (string, bool) {
	rest, ok := strings.CutPrefix(field, prefix+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// quotedLines is one key="value" per line, sorted by key.
func quotedLines(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(lines, "\n")
}

// containerResource reads limits.* or requests.* of a container in units of the divisor, rounded up. Where a limit is
// not set, it is what the node can give.
func containerResource(pod *v1.Pod, ref *v1.ResourceFieldSelector, allocatable v1.ResourceList) (string, error) {
	container, err := containerNamed(pod, ref.ContainerName)
	if err != nil {
		return "", err
	}
	list, name, limits := container.Resources.Requests, "", false
	if name, limits = strings.CutPrefix(ref.Resource, "limits."); limits {
		list = container.Resources.Limits
	} else if name, _ = strings.CutPrefix(ref.Resource, "requests."); name == ref.Resource {
		return "", fmt.Errorf("unsupported container resource %q", ref.Resource)
	}
	key := v1.ResourceName(name)
	switch {
	case key == v1.ResourceCPU, key == v1.ResourceMemory, key == v1.ResourceEphemeralStorage:
	case strings.HasPrefix(name, v1.ResourceHugePagesPrefix):
		allocatable = nil // huge pages are never overcommitted: no limit means none
	default:
		return "", fmt.Errorf("unsupported container resource %q", ref.Resource)
	}
	quantity := list[key]
	if limits && quantity.IsZero() {
		quantity = allocatable[key]
	}
	return inUnits(quantity, ref.Divisor, key == v1.ResourceCPU), nil
}

func inUnits(q, divisor resource.Quantity, milli bool) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	a, b := q.Value(), divisor.Value()
	if milli {
		a, b = q.MilliValue(), divisor.MilliValue()
	}
	return strconv.FormatInt(int64(math.Ceil(float64(a)/float64(b))), 10)
}

func containerNamed(pod *v1.Pod, name string) (*v1.Container, error) {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i], nil
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i], nil
		}
	}
	return nil, fmt.Errorf("container %q not found in the pod", name)
}
