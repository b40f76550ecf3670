package deploy

import (
	"testing"

	v2 "helm.sh/helm/v4/pkg/chart/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"berth.io/berth/test/deploy/chart"
)

func load(t *testing.T) *v2.Chart {
	t.Helper()
	c, err := chart.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// values reads values as a user would write them.
func values(t *testing.T, text string) map[string]any {
	t.Helper()
	v, err := chart.Values(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// render is all that the chart makes.
func render(t *testing.T, values map[string]any) []*unstructured.Unstructured {
	t.Helper()
	return renderIn(t, "default", values)
}

func renderIn(t *testing.T, namespace string, values map[string]any) []*unstructured.Unstructured {
	t.Helper()
	files, err := chart.Render(load(t), namespace, values)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := chart.Objects(files)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// workload finds one object and gives it its type.
func workload[T any](t *testing.T, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, u := range objects {
		if u.GetKind() == kind && u.GetName() == name {
			out := new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

// merge is a with b over it.
func merge(a, b map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		was, both := out[k].(map[string]any)
		now, ok := v.(map[string]any)
		if both && ok {
			v = merge(was, now)
		}
		out[k] = v
	}
	return out
}
