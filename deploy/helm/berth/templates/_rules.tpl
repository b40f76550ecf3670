{{- define "berth.rules.shared" -}}
- apiGroups: [""]
  resources: [persistentvolumes, persistentvolumeclaims, nodes]
  verbs: [get, list, watch]
- apiGroups: [storage.k8s.io]
  resources: [storageclasses, csinodes, volumeattachments]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
{{- end }}

{{- define "berth.rules.provision" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [create, update, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [update, patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: [get, list, watch, update, patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get, list, watch]
{{- end }}

{{- define "berth.rules.capacity" -}}
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [get, list, watch]
{{- end }}

{{- define "berth.rules.attach" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [patch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattachments]
  verbs: [patch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattachments/status]
  verbs: [patch]
{{- end }}

{{- define "berth.rules.resize" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- end }}

{{- define "berth.rules.modify" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims/status]
  verbs: [patch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattributesclasses]
  verbs: [get, list, watch]
{{- end }}

{{- define "berth.rules.snapshot" -}}
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get, list, watch, update, patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents/status]
  verbs: [update, patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents]
  verbs: [get, list, watch, update, patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents/status]
  verbs: [update, patch]
{{- end }}

{{- define "berth.rules.snapshot-controller" -}}
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [update]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents/status]
  verbs: [patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots/status]
  verbs: [update, patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents/status]
  verbs: [patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshots]
  verbs: [get, list, watch, update, patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshots/status]
  verbs: [update, patch]
{{- end }}

{{- define "berth.rules.retention" -}}
- apiGroups: [storage.berth.io]
  resources: [snapshotschedules]
  verbs: [get, list, watch]
- apiGroups: [storage.berth.io]
  resources: [snapshotschedules/status]
  verbs: [patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: [get, list, watch, create, delete]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshots]
  verbs: [get, list, watch, create, delete]
{{- end }}

{{- define "berth.rules.discovery" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [patch, delete]
- apiGroups: [""]
  resources: [persistentvolumes/status]
  verbs: [patch]
{{- end }}

{{- define "berth.rules.block" -}}
- apiGroups: [storage.berth.io]
  resources: [blockpools]
  verbs: [get, list, watch]
- apiGroups: [storage.berth.io]
  resources: [blockvolumes, blocksnapshots]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}

{{- define "berth.rules.node" -}}
- apiGroups: [storage.berth.io]
  resources: [blockpools]
  verbs: [get, list, watch, create, patch]
- apiGroups: [storage.berth.io]
  resources: [blockvolumes, blocksnapshots]
  verbs: [get, list, watch, patch]
- apiGroups: [storage.berth.io]
  resources: [blockpools/status, blockvolumes/status, blocksnapshots/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- define "berth.rules.node-registration" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch, patch]
- apiGroups: [storage.k8s.io]
  resources: [csinodes]
  verbs: [list, watch]
{{- end }}

{{- define "berth.rules.node-discovery" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumes/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [namespaces]
  resourceNames: [kube-system]
  verbs: [get]
{{- end }}
