{{/* The namespace of all namespaced objects. */}}
{{- define "berth.namespace" -}}
{{ .Values.namespace.name }}
{{- end }}

{{/* berth.image (dict "context" $ "override" {tag, digest}): the image's reference; a digest wins over a tag. */}}
{{- define "berth.image" -}}
{{- $image := .context.Values.image -}}
{{- $override := .override | default dict -}}
{{- $digest := $override.digest | default (ternary "" $image.digest (not (empty $override.tag))) -}}
{{- if $digest -}}
{{ $image.repository }}@{{ $digest }}
{{- else -}}
{{ $image.repository }}:{{ $override.tag | default $image.tag | default .context.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Labels that tell workloads apart; a selector's cannot change, so nothing is added here later. */}}
{{- define "berth.selector" -}}
app.kubernetes.io/name: berth
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* Labels of every object. No chart version: every object would change, and every pod restart, with each. */}}
{{- define "berth.labels" -}}
app.kubernetes.io/name: berth
app.kubernetes.io/part-of: berth
{{- end }}

{{/* The roles of controller.controllers, as a JSON list: names, * for all, -NAME for all but one; the last word on a name counts. */}}
{{- define "berth.roles" -}}
{{- $known := list "provision" "capacity" "attach" "resize" "modify" "snapshot" "snapshot-controller" "retention" "discovery" "block" -}}
{{- $asked := .Values.controller.controllers -}}
{{- $all := or (empty $asked) (has "*" $asked) -}}
{{- $names := list -}}
{{- range $asked }}{{ if not (or (eq . "*") (hasPrefix "-" .)) }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- if empty $names }}{{ $all = true }}{{ end -}}
{{- $chosen := dict -}}
{{- if $all }}{{ range $known }}{{ $_ := set $chosen . true }}{{ end }}{{ end -}}
{{- range $asked -}}
{{- if ne . "*" -}}
{{- $name := trimPrefix "-" . -}}
{{- if not (has $name $known) }}{{ fail (printf "controller.controllers: no controller is called %q: there are %s, * for all, and -NAME for all but one" $name (join ", " $known)) }}{{ end -}}
{{- $_ := set $chosen $name (not (hasPrefix "-" .)) -}}
{{- end -}}
{{- end -}}
{{- $roles := list -}}
{{- range $known }}{{ if get $chosen . }}{{ $roles = append $roles . }}{{ end }}{{ end -}}
{{- if empty $roles }}{{ fail (printf "controller.controllers: %s leaves nothing to do" (join "," $asked)) }}{{ end -}}
{{- toJson $roles -}}
{{- end }}

{{/* Annotations by which Prometheus finds a pod: (list metrics port). */}}
{{- define "berth.scrape" -}}
{{- if (index . 0).annotations -}}
prometheus.io/scrape: "true"
prometheus.io/port: "{{ index . 1 }}"
prometheus.io/path: /metrics
{{- end -}}
{{- end }}

{{/* Probes of a container; liveness asks the driver too. */}}
{{- define "berth.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  {{- toYaml .startup | nindent 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: http}
  {{- toYaml .liveness | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  {{- toYaml .readiness | nindent 2 }}
{{- end }}

{{/* A map of feature gates as one argument. */}}
{{- define "berth.gates" -}}
{{- $gates := list -}}
{{- range $name, $on := . }}{{ $gates = append $gates (printf "%s=%t" $name $on) }}{{ end -}}
{{- join "," $gates -}}
{{- end }}

{{/* berth.bindCluster (dict "context" $ "role" NAME "account" NAME): a ClusterRole's binding to a ServiceAccount. */}}
{{- define "berth.bindCluster" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .role }}
  labels: {{- include "berth.labels" .context | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ .role }}}
subjects:
  - {kind: ServiceAccount, name: {{ .account }}, namespace: {{ include "berth.namespace" .context }}}
{{- end }}

{{/* berth.bind (dict "context" $ "role" NAME "account" NAME ["namespace" NAME]): a Role's binding to a ServiceAccount. */}}
{{- define "berth.bind" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .role }}
  namespace: {{ .namespace | default (include "berth.namespace" .context) }}
  labels: {{- include "berth.labels" .context | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .role }}}
subjects:
  - {kind: ServiceAccount, name: {{ .account }}, namespace: {{ include "berth.namespace" .context }}}
{{- end }}

{{/* How much is logged, and how. */}}
{{- define "berth.logging" -}}
- --v={{ .verbosity }}
- --logging-format={{ .format }}
{{- end }}

{{- /* Whether a path is a directory (list path directory), or in it: "yes" or nothing. */}}
{{- define "berth.within" -}}
{{- if hasPrefix (printf "%s/" (clean (index . 1))) (printf "%s/" (clean (index . 0))) }}yes{{ end }}
{{- end }}
