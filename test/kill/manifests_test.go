package kill

// manifests have a volume of every kind that a pod can have here, and what makes the controllers write everything that
// they can write. %[1]s is a directory on the host, %[2]s the size of the claim that grows, %[3]s and %[4]s are block
// devices for local volumes, %[5]s is the size of the first.
const manifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: value, extra: value}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {key: value}
---
# XFS, which any root may grow while it is mounted; ext4 is what the ephemeral volume has.
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: grows}
provisioner: block.csi.berth.io
parameters: {csi.storage.k8s.io/fstype: xfs}
allowVolumeExpansion: true
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: static}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  hostPath: {path: %[1]s/static}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: static}
spec: {accessModes: [ReadWriteOnce], volumeName: static, storageClassName: "", resources: {requests: {storage: 1Gi}}}
---
# Local volumes: a directory, a device with a filesystem, a raw device.
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-dir}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: %[1]s/local}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}]}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-fs, labels: {kind: device}}
spec:
  capacity: {storage: %[5]s}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: %[3]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}]}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-raw}
spec:
  capacity: {storage: 32Mi}
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: %[4]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: local-dir}
spec: {accessModes: [ReadWriteOnce], storageClassName: local, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: local-fs}
spec: {accessModes: [ReadWriteOnce], storageClassName: local, selector: {matchLabels: {kind: device}}, resources: {requests: {storage: %[5]s}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: local-raw}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: local, resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: grows, resources: {requests: {storage: %[2]s}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOncePod], volumeMode: Block, storageClassName: berth-block, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  securityContext: {fsGroup: 1000}
  containers:
  - name: app
    image: busybox
    volumeDevices:
    - {name: raw, devicePath: /dev/raw}
    - {name: local-raw, devicePath: /dev/local}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: data, mountPath: /part, subPath: part}
    - {name: static, mountPath: /static}
    - {name: local-dir, mountPath: /local/dir}
    - {name: local-fs, mountPath: /local/fs}
    - {name: scratch, mountPath: /scratch}
    - {name: conf, mountPath: /conf}
    - {name: mem, mountPath: /conf/mem}
    - {name: disk, mountPath: /disk}
    - {name: secret, mountPath: /secret}
    - {name: token, mountPath: /token}
    - {name: host-dir, mountPath: /host/dir}
    - {name: host-file, mountPath: /host/file}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: raw, persistentVolumeClaim: {claimName: raw}}
  - {name: static, persistentVolumeClaim: {claimName: static}}
  - {name: local-dir, persistentVolumeClaim: {claimName: local-dir, readOnly: true}}
  - {name: local-fs, persistentVolumeClaim: {claimName: local-fs}}
  - {name: local-raw, persistentVolumeClaim: {claimName: local-raw}}
  - name: scratch
    ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block, resources: {requests: {storage: 16Mi}}}}}
  - {name: conf, configMap: {name: conf}}
  - {name: mem, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
  - {name: secret, secret: {secretName: secret}}
  - {name: token, projected: {sources: [{serviceAccountToken: {path: token, audience: there}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
  - {name: host-dir, hostPath: {path: %[1]s/made/dir, type: DirectoryOrCreate}}
  - {name: host-file, hostPath: {path: %[1]s/file, type: FileOrCreate}}
`

// oddities are objects in states that only a mishap or another cluster's past leads to; the controllers put them right.
const oddities = `
# Waits for a claim that never comes.
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  containers: [{name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: nobody}}]
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: gold}
driverName: block.csi.berth.io
parameters: {iops: "100"}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: migrated}
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
---
# Made by a plugin that was moved to CSI since.
apiVersion: v1
kind: PersistentVolume
metadata: {name: migrated, annotations: {pv.kubernetes.io/provisioned-by: kubernetes.io/aws-ebs}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: migrated
  hostPath: {path: %[1]s/migrated}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: migrated, annotations: {volume.kubernetes.io/storage-provisioner: kubernetes.io/aws-ebs}}
spec: {accessModes: [ReadWriteOnce], storageClassName: migrated, volumeName: migrated, resources: {requests: {storage: %[2]s}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: lost}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: migrated
  hostPath: {path: %[1]s/lost}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: lost}
spec: {accessModes: [ReadWriteOnce], storageClassName: migrated, volumeName: lost, resources: {requests: {storage: 1Gi}}}
`
