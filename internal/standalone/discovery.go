package standalone

import (
	"context"

	"berth.io/berth/internal/discovery"
)

// makeDiscovery makes the discovery of local disks, where one is asked for.
func (r *rooms) makeDiscovery() (err error) {
	in := r.in
	if in.DiscoveryConfig == "" {
		return nil
	}
	r.discovery, err = discovery.New(discovery.Options{Client: in.client, Informers: r.informers, Node: in.NodeName, Config: in.DiscoveryConfig,
		Events: r.recorder("local-volume-provisioner"), Log: in.log, Metrics: r.metrics})
	return err
}

func (r *rooms) runDiscovery(ctx context.Context) error {
	if r.discovery == nil {
		return nil
	}
	return r.discovery.Run(ctx)
}

// possibleDiscovery reads the configuration of the discovery before anything is started; an error names the field.
func (o *Options) possibleDiscovery() error {
	if o.DiscoveryConfig == "" {
		return nil
	}
	_, err := discovery.ReadConfig(o.DiscoveryConfig)
	return err
}
