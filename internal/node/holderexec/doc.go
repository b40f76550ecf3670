// Package holderexec runs a command with a pod's volumes at their mount paths: `berth exec`.
//
// A holder has no container, so the command sees the host's filesystem, with the container's volumeMounts and
// volumeDevices put in place, in a mount namespace of its own. Nothing is made on the host for it: where a mount path
// does not exist there, the deepest directory that does is covered, in that namespace, by a tmpfs that shows the same
// entries as bind mounts, and the missing directories are made in the tmpfs. All of it ends with the command. (An
// overlay over / would do the same with fewer mounts, but its behaviour is undefined when the lower filesystem changes
// beneath it, and the host's does.) What the command itself writes outside the volumes goes to the host, as with any
// command of root; new entries in a covered directory vanish with it.
//
// A volume's contents are not trusted: a subPath, and a mount path inside another volume, are resolved by openat2 below
// the volume's root, so that a link cannot lead out of it.
//
// Honoured: mountPath, subPath, subPathExpr, readOnly, recursiveReadOnly, volumeDevices, workingDir (when it exists),
// env with plain values, $(NAME) references and fieldRef, runAsUser, runAsGroup, fsGroup, supplementalGroups. Not set:
// env from secrets, config maps and resources (Spec.Unset names them). Everything else of a container (image, network,
// capabilities, limits) does not exist here.
//
// The caller's program is executed again as a helper (Main), because a mount namespace must be made before a Go program
// has threads. It stays as the command's parent, and ends everything in the namespace when the caller dies. The pod's agent kills the command when the pod is deleted (KillAll): its namespace would keep the
// volumes' filesystems alive. For the same reason the namespace leaves behind what is mounted for other pods.
package holderexec
