package deploy

import (
	"encoding/json"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// foreign metrics that alerts and the dashboard use: of Prometheus, and of the kubelet.
var foreign = []string{"up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes", "kubelet_volume_stats_health_status_abnormal"}

// Alerts and the dashboard ask for metrics that the programs have.
func TestMetricsOfMonitoringAreServed(t *testing.T) {
	served := slices.Clone(foreign)
	name := regexp.MustCompile(`"(berth_[a-z_]+)"`)
	err := filepath.WalkDir(root+"/internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			served = append(served, m[1], m[1]+"_bucket", m[1]+"_count")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]string{}
	for _, r := range alertRules(t) {
		asked["alert "+r.Alert] = r.Expr
	}
	for title, expr := range dashboardQueries(t) {
		asked["panel "+title] = expr
	}
	for who, expr := range asked {
		e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
		if err != nil {
			t.Errorf("%s: %v", who, err)
			continue
		}
		parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
			if s, is := n.(*parser.VectorSelector); is && !slices.Contains(served, s.Name) {
				t.Errorf("%s asks for %s, which nobody serves", who, s.Name)
			}
			return nil
		})
	}
}

func alertRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(chartDir+"/files/alerts.yaml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), nil)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return groups.Groups[0].Rules
}

// dashboardQueries are the dashboard's expressions by panel, with its variables filled in.
func dashboardQueries(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(chartDir + "/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	out, ids := map[string]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: its id is another's, or it is off the grid", p.Title)
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			out[p.Title+"/"+q.RefID] = strings.ReplaceAll(q.Expr, "$node", ".*")
		}
	}
	if len(out) < 15 {
		t.Errorf("a dashboard of %d queries", len(out))
	}
	return out
}

// Each alert fires on what it is for and is silent otherwise, and its annotation is a command that leads on.
func TestAlerts(t *testing.T) {
	const kubelet = `namespace="shop",persistentvolumeclaim="data"`
	tested := map[string]bool{}
	for _, c := range []struct {
		alert, fires, silent string // series, as promtool has them
		why                  string
	}{
		{
			"BerthVolumeWaits",
			`berth_lane_items{driver_name="d",lane="attach"} 1+0x60
			 berth_lane_oldest_seconds{driver_name="d",lane="attach"} 400+0x60
			 berth_lane_oldest_info{driver_name="d",lane="attach",claim_namespace="shop",claim="data",volume="pvc-1",target_node="n"} 1+0x60`,
			`berth_lane_items{driver_name="d",lane="attach"} 0+0x60
			 berth_lane_oldest_seconds{driver_name="d",lane="attach"} 0+0x60`,
			"kubectl berth why pv/pvc-1",
		},
		{
			"BerthVolumeWaits",
			`berth_lane_items{driver_name="d",lane="provision"} 9+0x60
			 berth_lane_oldest_seconds{driver_name="d",lane="provision"} 301+0x60
			 berth_lane_oldest_info{driver_name="d",lane="provision",claim_namespace="shop",claim="data",volume="",target_node=""} 1+0x60`,
			`berth_lane_items{driver_name="d",lane="provision"} 9+0x60
			 berth_lane_oldest_seconds{driver_name="d",lane="provision"} 299+0x60`,
			"kubectl berth why -n shop pvc/data",
		},
		{"BerthControllerAway", `berth_controller_leader{pod="a"} 0+0x60`, `berth_controller_leader{pod="a"} 1+0x60`, "kubectl -n berth-system get pods -l app.kubernetes.io/component=controller -o wide"},
		{
			"BerthTwoControllers", "berth_controller_leader{pod=\"a\"} 1+0x60\nberth_controller_leader{pod=\"b\"} 1+0x60",
			"berth_controller_leader{pod=\"a\"} 1+0x60\nberth_controller_leader{pod=\"b\"} 0+0x60", "kubectl -n berth-system get lease berth-controller -o yaml",
		},
		{"BerthNodeAgentAway", `up{job="berth-node",node="n",pod="berth-node-x"} 0+0x60`, `up{job="other"} 0+0x60`, "kubectl -n berth-system describe pod berth-node-x"},
		{
			"BerthPoolNearlyFull", "berth_pool_bytes{pool=\"default\",node=\"n\",kind=\"available\"} 9+0x60\nberth_pool_bytes{pool=\"default\",node=\"n\",kind=\"total\"} 100+0x60",
			"berth_pool_bytes{pool=\"default\",node=\"n\",kind=\"available\"} 11+0x60\nberth_pool_bytes{pool=\"default\",node=\"n\",kind=\"total\"} 100+0x60", "kubectl get blockvolumes -o wide",
		},
		{
			"BerthVolumeNearlyFull", "kubelet_volume_stats_available_bytes{" + kubelet + "} 4+0x60\nkubelet_volume_stats_capacity_bytes{" + kubelet + "} 100+0x60",
			"kubelet_volume_stats_available_bytes{" + kubelet + "} 6+0x60\nkubelet_volume_stats_capacity_bytes{" + kubelet + "} 100+0x60", "kubectl berth why -n shop pvc/data",
		},
		{"BerthVolumeAbnormal", "kubelet_volume_stats_health_status_abnormal{" + kubelet + "} 1+0x60", "kubelet_volume_stats_health_status_abnormal{" + kubelet + "} 0+0x60", "kubectl berth why -n shop pvc/data"},
		{
			"BerthDriverFails", `berth_csi_call_duration_seconds_count{driver="d",node="n",method="/csi.v1.Node/NodeStageVolume",code="Internal"} 0+1x60`,
			`berth_csi_call_duration_seconds_count{driver="d",node="n",method="/csi.v1.Node/NodeStageVolume",code="Aborted"} 0+1x60`, "kubectl berth why -A",
		},
		{"BerthOrphans", `berth_block_agent_orphans{node="n"} 2+0x120`, `berth_block_agent_orphans{node="n"} 0+0x120`, "kubectl get blockpools -o yaml"},
		{"BerthLocalDisk", `berth_discovery_disks{node="n",state="wrong"} 1+0x60`, `berth_discovery_disks{node="n",state="offered"} 5+0x60`, "kubectl get events -A --field-selector involvedObject.kind=PersistentVolume"},
		{"BerthLocalVolumesWithoutNode", `berth_discovery_volumes_without_node{phase="Bound"} 1+0x60`, `berth_discovery_volumes_without_node{phase="Bound"} 0+0x60`, "kubectl berth why -A"},
		{"BerthSnapshotsLeftOut", `berth_snapshot_schedule_skipped_total 0+1x60`, `berth_snapshot_schedule_skipped_total 4+0x60`, "kubectl get snapshotschedules -A"},
	} {
		t.Run(c.alert, func(t *testing.T) {
			tested[c.alert] = true
			if fired := evaluate(t, c.alert, c.silent); len(fired) > 0 {
				t.Errorf("it fires without a reason: %v", fired)
			}
			fired := evaluate(t, c.alert, c.fires)
			if len(fired) == 0 {
				t.Fatal("it does not fire")
			}
			for annotation, text := range fired[0] {
				if strings.Contains(text, "<no value>") || strings.Contains(text, "error") {
					t.Errorf("%s: %s", annotation, text)
				}
			}
			if fired[0]["why"] != c.why || fired[0]["summary"] == "" {
				t.Errorf("says %q, then %q; want %q", fired[0]["summary"], fired[0]["why"], c.why)
			}
		})
	}
	for _, r := range alertRules(t) {
		if !tested[r.Alert] {
			t.Errorf("nothing tries alert %s", r.Alert)
		}
	}
}

// evaluate runs an alert for two hours over series of one sample a minute, and returns the annotations of those that fire at the first
// moment at which any does.
func evaluate(t *testing.T, alert, series string) []map[string]string {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n"+indented(series))
	defer storage.Close()
	engine := promqltest.NewTestEngine(t, false, 0, 100000)
	query := rules.EngineQueryFunc(engine, storage)
	var of rulefmt.Rule
	for _, r := range alertRules(t) {
		if r.Alert == alert {
			of = r
		}
	}
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(of.Expr)
	if err != nil {
		t.Fatalf("%q: %v", of.Alert, err)
	}
	rule := rules.NewAlertingRule(of.Alert, expr, time.Duration(of.For), time.Duration(of.KeepFiringFor), labels.FromMap(of.Labels), labels.FromMap(of.Annotations), labels.EmptyLabels(), "", true, nil)
	for at := time.Unix(0, 0).UTC(); at.Before(time.Unix(2*3600, 0)); at = at.Add(time.Minute) {
		if _, err := rule.Eval(t.Context(), 0, at, query, &url.URL{}, 0); err != nil {
			t.Fatal(err)
		}
		var fired []map[string]string
		for _, a := range rule.ActiveAlerts() {
			if a.State == rules.StateFiring {
				fired = append(fired, a.Annotations.Map())
			}
		}
		if len(fired) > 0 || at.After(time.Unix(59*60, 0)) && of.Alert != "BerthOrphans" { // the series end after an hour
			return fired
		}
	}
	return nil
}

func indented(series string) string {
	var b strings.Builder
	for line := range strings.Lines(series) {
		b.WriteString("  " + strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// The chart's PrometheusRule and ConfigMap are the files, whole, and only where they are asked for.
func TestChartHasTheFilesOfMonitoring(t *testing.T) {
	find := func(kind string, objects []*unstructured.Unstructured) *unstructured.Unstructured {
		for _, o := range objects {
			if o.GetKind() == kind && strings.HasPrefix(o.GetName(), "berth") && o.GetName() != "berth-node-discovery" {
				return o
			}
		}
		return nil
	}
	off := render(t, values(t, ""))
	if find("PrometheusRule", off) != nil || find("ConfigMap", off) != nil {
		t.Error("made without being asked for")
	}
	on := render(t, values(t, "metrics: {prometheusRule: {enabled: true, labels: {release: p}}, dashboard: {enabled: true}}"))
	rule, board := find("PrometheusRule", on), find("ConfigMap", on)
	if rule == nil || board == nil {
		t.Fatal("not made")
	}
	text, err := os.ReadFile(chartDir + "/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := yaml.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(rule.Object["spec"], want) || rule.GetLabels()["release"] != "p" {
		t.Errorf("another rule than the file: %v", rule.Object)
	}
	if text, err = os.ReadFile(chartDir + "/files/dashboard.json"); err != nil {
		t.Fatal(err)
	}
	data, _, _ := unstructured.NestedString(board.Object, "data", "berth.json")
	if strings.TrimSpace(data) != strings.TrimSpace(string(text)) || board.GetLabels()["grafana_dashboard"] != "1" {
		t.Errorf("another dashboard than the file: %d and %d bytes", len(data), len(text))
	}
}
