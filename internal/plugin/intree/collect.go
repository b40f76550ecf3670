package intree

import (
	"context"
	"errors"
	"fmt"
	"os"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"berth.io/berth/internal/plugin"
)

func (v *Volumes) collectConfigMap(ctx context.Context, r plugin.PublishRequest) (payload, error) {
	s := r.Volume.Source.ConfigMap
	return v.object(ctx, r.Volume, objectKey{configMaps, r.Volume.Pod.Namespace, s.Name}, s.Items, s.DefaultMode, s.Optional)
}

func (v *Volumes) collectSecret(ctx context.Context, r plugin.PublishRequest) (payload, error) {
	s := r.Volume.Source.Secret
	return v.object(ctx, r.Volume, objectKey{secrets, r.Volume.Pod.Namespace, s.SecretName}, s.Items, s.DefaultMode, s.Optional)
}

func (v *Volumes) collectDownwardAPI(_ context.Context, r plugin.PublishRequest) (payload, error) {
	s := r.Volume.Source.DownwardAPI
	return downward(s.Items, r.Volume.Pod, v.opts.Allocatable(), s.DefaultMode)
}

// object shows the keys of a config map or secret: all of them, or the items under their own paths.
func (v *Volumes) object(ctx context.Context, vol *plugin.Volume, key objectKey, items []v1.KeyToPath, defaultMode *int32, optional *bool) (payload, error) {
	mayMiss := optional != nil && *optional
	data, err := v.sources.read(ctx, key, vol.Pod.UID, vol.Name)
	if apierrors.IsNotFound(err) && mayMiss {
		data, err = nil, nil
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%s does not exist in namespace %q; the volume is mounted as soon as it does", key, key.namespace)
	case err != nil:
		return nil, fmt.Errorf("%s in namespace %q: %w", key, key.namespace, err)
	}
	mode := fileMode(defaultMode, nil)
	files := payload{}
	if len(items) == 0 {
		for name, content := range data {
			files[name] = file{data: content, mode: mode}
		}
		return files, nil
	}
	for _, item := range items {
		content, ok := data[item.Key]
		if !ok && mayMiss {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("%s has no key %q", key, item.Key)
		}
		files[item.Path] = file{data: content, mode: fileMode(defaultMode, item.Mode)}
	}
	return files, nil
}

// fileMode: the API server fills in defaultMode 0644; so do we for a pod that never passed it.
func fileMode(defaultMode, mode *int32) os.FileMode {
	switch {
	case mode != nil:
		return os.FileMode(*mode).Perm()
	case defaultMode != nil:
		return os.FileMode(*defaultMode).Perm()
	}
	return 0o644
}

// collectProjected reads all sources at once: the token and the root certificates of the volume that admission adds
// to every pod are two requests, and their times must not add up. Later sources win, as upstream's.
func (v *Volumes) collectProjected(ctx context.Context, r plugin.PublishRequest) (payload, error) {
	s := r.Volume.Source.Projected
	parts := make([]payload, len(s.Sources))
	errs := make([]error, len(s.Sources))
	done := make(chan struct{}, len(s.Sources))
	for i := range s.Sources {
		go func() {
			defer func() { done <- struct{}{} }()
			parts[i], errs[i] = v.projection(ctx, r, &s.Sources[i], s.DefaultMode)
		}()
	}
	for range s.Sources {
		<-done
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	files := payload{}
	for _, part := range parts {
		for name, f := range part {
			files[name] = f
		}
	}
	return files, nil
}

// projection reads one source of a projected volume.
func (v *Volumes) projection(ctx context.Context, r plugin.PublishRequest, s *v1.VolumeProjection, defaultMode *int32) (payload, error) {
	pod := r.Volume.Pod
	switch {
	case s.ConfigMap != nil:
		return v.object(ctx, r.Volume, objectKey{configMaps, pod.Namespace, s.ConfigMap.Name}, s.ConfigMap.Items, defaultMode, s.ConfigMap.Optional)
	case s.Secret != nil:
		return v.object(ctx, r.Volume, objectKey{secrets, pod.Namespace, s.Secret.Name}, s.Secret.Items, defaultMode, s.Secret.Optional)
	case s.DownwardAPI != nil:
		return downward(s.DownwardAPI.Items, pod, v.opts.Allocatable(), defaultMode)
	case s.ServiceAccountToken != nil:
		token, err := v.tokens.get(ctx, pod, r.Volume.Name, s.ServiceAccountToken)
		if err != nil {
			return nil, err
		}
		user := soleUser(pod)
		mode := fileMode(defaultMode, nil)
		if user != nil || r.FSGroup != nil {
			mode = 0o600 // fsGroup widens it to 0640
		}
		return payload{s.ServiceAccountToken.Path: {data: []byte(token), mode: mode, owner: user}}, nil
	case s.ClusterTrustBundle != nil:
		return nil, errors.New("source clusterTrustBundle is not served by this node; put the bundle into a configMap")
	case s.PodCertificate != nil:
		return nil, errors.New("source podCertificate is not served by this node; put the certificate into a secret")
	}
	return nil, errors.New("a source of the projected volume names no kind that this node serves")
}
