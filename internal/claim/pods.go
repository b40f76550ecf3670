package claim

import (
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
)

// podsByClaim is the name of the index on the shared pod informer; upstream's name, so that a room that wants the
// same index finds it there.
const podsByClaim = "pod-pvc-index"

// podIndex finds pods by the claim that they use, and knows how fresh that answer is.
type podIndex struct {
	indexer cache.Indexer

	mu     sync.RWMutex
	newest string // the highest resourceVersion of a pod that the watch has told of
}

func indexPods(inf cache.SharedIndexInformer) (*podIndex, error) {
	if _, ok := inf.GetIndexer().GetIndexers()[podsByClaim]; !ok {
		err := inf.AddIndexers(cache.Indexers{podsByClaim: func(o any) ([]string, error) {
			if pod, ok := o.(*v1.Pod); ok {
				return claimsOfPod(pod), nil
			}
			return nil, nil
		}})
		if err != nil {
			return nil, err
		}
	}
	return &podIndex{indexer: inf.GetIndexer()}, nil
}

// using lists the pods that name the claim called key, directly or as a generic ephemeral volume.
func (p *podIndex) using(key string) ([]*v1.Pod, error) {
	objs, err := p.indexer.ByIndex(podsByClaim, key)
	if err != nil {
		return nil, err
	}
	pods := make([]*v1.Pod, 0, len(objs))
	for _, o := range objs {
		if pod, ok := o.(*v1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods, nil
}

// unscheduled names the pods that use the claim, have not ended and have no node.
func (p *podIndex) unscheduled(key string) ([]string, error) {
	pods, err := p.using(key)
	var names []string
	for _, pod := range pods {
		if !terminated(pod) && pod.Spec.NodeName == "" {
			names = append(names, pod.Name)
		}
	}
	return names, err
}

// active names the pods that use the claim and have not ended, as namespace/name.
func (p *podIndex) active(key string) ([]string, error) {
	pods, err := p.using(key)
	var names []string
	for _, pod := range pods {
		if !terminated(pod) {
			names = append(names, pod.Namespace+"/"+pod.Name)
		}
	}
	return names, err
}

// saw notes that the index holds a pod in this version.
func (p *podIndex) saw(version string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.newest == "" {
		p.newest = version
		return
	}
	if d, err := resourceversion.CompareResourceVersion(version, p.newest); err == nil && d > 0 {
		p.newest = version
	}
}

// knows says that the index has everything that was written to pods before this version. Versions of different
// resources come from one counter, the revision of the one etcd behind the API. A relist does not break it: the
// informer puts a whole list into the index before it tells of any pod in it (client-go's AtomicFIFO).
func (p *podIndex) knows(version string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	d, err := resourceversion.CompareResourceVersion(p.newest, version)
	return err == nil && d >= 0
}

// claimsOfPod lists the keys of the claims that a pod uses.
func claimsOfPod(pod *v1.Pod) []string {
	var keys []string
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			keys = append(keys, pod.Namespace+"/"+v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			keys = append(keys, pod.Namespace+"/"+ephemeral.VolumeClaimName(pod, v))
		}
	}
	return keys
}

// terminated says that the pod's containers are over, for good (upstream's IsPodTerminated).
func terminated(pod *v1.Pod) bool {
	if pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded {
		return true
	}
	if pod.DeletionTimestamp == nil {
		return false
	}
	st := &pod.Status
	return !slices.ContainsFunc(slices.Concat(st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses),
		func(s v1.ContainerStatus) bool { return s.State.Terminated == nil && s.State.Waiting == nil })
}
