package kubectlberth

import (
	"context"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/block/objects"
)

// blockDriver has an object for each of its volumes (BlockVolume), of the same name as the handle.
const blockDriver = "block.csi.berth.io"

// blockProblems tells what is wrong with Berth's own volumes. Where there are none, or they may not be read, it knows nothing.
// With several questions it reads all at once.
func blockProblems(ctx context.Context, client *objects.Client, several bool) func(driver, handle string) string {
	all := sync.OnceValue(func() map[string]string {
		known := map[string]string{}
		options := metav1.ListOptions{Limit: 500}
		for {
			page, err := client.Volumes.List(ctx, options)
			if err != nil {
				return known
			}
			for i := range page.Items {
				known[page.Items[i].Name] = page.Items[i].Status.Problem
			}
			if options.Continue = page.Continue; options.Continue == "" {
				return known
			}
		}
	})
	return func(driver, handle string) string {
		if driver != blockDriver {
			return ""
		}
		if several {
			return all()[handle]
		}
		o, err := client.Volumes.Get(ctx, handle, metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return o.Status.Problem
	}
}
