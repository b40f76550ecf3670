package flexvolume

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/plugin"
)

// Keys of the options that a driver gets beside the user's.
const (
	optionFSType         = "kubernetes.io/fsType"
	optionReadWrite      = "kubernetes.io/readwrite"
	optionVolumeName     = "kubernetes.io/pvOrVolumeName"
	optionPodName        = "kubernetes.io/pod.name"
	optionPodNamespace   = "kubernetes.io/pod.namespace"
	optionPodUID         = "kubernetes.io/pod.uid"
	optionServiceAccount = "kubernetes.io/serviceAccount.name"
	optionFSGroup        = "kubernetes.io/mounterArgs.FsGroup"
	optionSecretPrefix   = "kubernetes.io/secret/"
)

// options is the JSON that describes v to its driver. extra comes before the user's own options, which are merged last; the API
// refuses options of the user's in the namespaces kubernetes.io and k8s.io.
func options(v *plugin.Volume, extra map[string]string) (string, error) {
	all := map[string]string{
		optionFSType:     fsType(v),
		optionReadWrite:  "rw",
		optionVolumeName: v.SpecName(),
	}
	if readOnly(v) {
		all[optionReadWrite] = "ro"
	}
	maps.Copy(all, extra)
	if src := persistent(v); src != nil {
		maps.Copy(all, src.Options)
	} else if src := inline(v); src != nil {
		maps.Copy(all, src.Options)
	}
	text, err := json.Marshal(all)
	return string(text), err
}

// mountOptions are the options of mount: it alone is told of the pod and given the secrets.
func mountOptions(v *plugin.Volume, fsGroup *int64, secrets map[string][]byte) (string, error) {
	extra := map[string]string{
		optionPodName:        v.Pod.Name,
		optionPodNamespace:   v.Pod.Namespace,
		optionPodUID:         string(v.Pod.UID),
		optionServiceAccount: v.Pod.Spec.ServiceAccountName,
	}
	if fsGroup != nil {
		extra[optionFSGroup] = strconv.FormatInt(*fsGroup, 10)
	}
	for name, value := range secrets {
		extra[optionSecretPrefix+name] = base64.StdEncoding.EncodeToString(value)
	}
	return options(v, extra)
}

// secrets reads the volume's secret live, so that a rotated one is used at once. Only a secret whose type is the driver's name may
// be given to it: so the secret's owner says who may have it.
func (p *Plugin) secrets(ctx context.Context, v *plugin.Volume) (map[string][]byte, error) {
	namespace, name := "", ""
	if src := persistent(v); src != nil && src.SecretRef != nil {
		namespace, name = src.SecretRef.Namespace, src.SecretRef.Name
	} else if src := inline(v); src != nil && src.SecretRef != nil {
		name = src.SecretRef.Name
	}
	if name == "" {
		return nil, nil
	}
	if namespace == "" {
		namespace = v.Pod.Namespace
	}
	if p.client == nil {
		return nil, fmt.Errorf("secret %s/%s can't be read without the API", namespace, name)
	}
	s, err := p.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s of FlexVolume driver %s: %w", namespace, name, p.Driver(v), err)
	}
	if s.Type != v1.SecretType(p.Driver(v)) {
		return nil, fmt.Errorf("secret %s/%s is of type %q, and FlexVolume driver %s may only have secrets of its own type: make it anew with type: %s",
			namespace, name, s.Type, p.Driver(v), p.Driver(v))
	}
	return s.Data, nil
}
