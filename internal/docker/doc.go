// Package docker serves volumes to container engines: Docker's volume plugin protocol, which Podman speaks as well, on a
// unix socket in the directory where Docker looks for plugins.
//
// It translates, and decides nothing: a volume is a claim in the namespace "docker", a mount is a caller of
// internal/volume, so that the counts are in the API and survive a restart of either side.
//
// https://docs.docker.com/engine/extend/plugins_volume/
package docker
