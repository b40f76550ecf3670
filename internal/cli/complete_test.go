package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// dirOf makes a data directory whose API answers with the objects by path.
func dirOf(t *testing.T, objects map[string]runtime.Object) string {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, found := objects[r.URL.Path]
		if !found {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(o)
	}))
	t.Cleanup(api.Close)
	dir, err := os.MkdirTemp("", "cli-") // t.TempDir has too long a name for a data directory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	kubeconfig := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c}}]\n", api.URL)
	if err := os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func typed(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }

func TestCompletion(t *testing.T) {
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	db := v1.Pod{TypeMeta: typed("Pod"), ObjectMeta: named("db-0"), Spec: v1.PodSpec{Containers: []v1.Container{{Name: "db"}, {Name: "backup"}}}}
	dir := dirOf(t, map[string]runtime.Object{
		"/api/v1/namespaces":                                &v1.NamespaceList{TypeMeta: typed("NamespaceList"), Items: []v1.Namespace{{ObjectMeta: named("default")}, {ObjectMeta: named("shop")}}},
		"/api/v1/namespaces/shop/pods":                      &v1.PodList{TypeMeta: typed("PodList"), Items: []v1.Pod{db}},
		"/api/v1/namespaces/shop/pods/db-0":                 &db,
		"/api/v1/namespaces/default/pods":                   &v1.PodList{TypeMeta: typed("PodList"), Items: []v1.Pod{{ObjectMeta: named("app")}}},
		"/api/v1/namespaces/default/persistentvolumeclaims": &v1.PersistentVolumeClaimList{TypeMeta: typed("PersistentVolumeClaimList"), Items: []v1.PersistentVolumeClaim{{ObjectMeta: named("data")}}},
		"/api/v1/persistentvolumes":                         &v1.PersistentVolumeList{TypeMeta: typed("PersistentVolumeList"), Items: []v1.PersistentVolume{{ObjectMeta: named("pv-1")}}},
	})
	for _, c := range []struct{ line, want string }{
		{"exec ", "app"},
		{"exec -n shop ", "db-0"},
		{"exec -n ", "default shop"},
		{"why --namespace ", "default shop"},
		{"exec -n shop db-0 -c ", "db backup"},
		{"exec -n shop pod/db-0 --container ", "db backup"},
		{"exec -c ", ""},
		{"why ", "pvc/data pod/app pv/pv-1"},
		{"why pvc ", "data"},
		{"why persistentvolumes ", "pv-1"},
		{"why node ", ""},
		{"why pvc/data ", ""},
		{"why -o ", "json yaml"},
		{"status -o ", "json yaml"},
		{"orphans --output ", "json yaml"},
		{"up --controllers ", "berth upstream"},
		{"up --log-level ", "debug info warn error"},
	} {
		args := append([]string{"--data-dir", dir}, strings.Split(c.line, " ")...)
		var out, errs bytes.Buffer
		root := newRoot()
		root.SetArgs(append([]string{"__complete"}, args...))
		root.SetOut(&out)
		root.SetErr(&errs)
		if err := root.Execute(); err != nil {
			t.Errorf("%q: %v", c.line, err)
		}
		got := strings.Fields(out.String())
		got = got[:max(0, len(got)-1)] // the directive
		if want := strings.Fields(c.want); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", c.line, got, want)
		}
	}
}
