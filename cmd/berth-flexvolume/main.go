// berth-flexvolume is Berth's FlexVolume drivers in one small program: argv[0] chooses the driver, whatever the vendor's
// directory is called (`berth~nfs/nfs`, `k8s~nfs/nfs`). `berth flexvolume install` puts it there.
package main

import (
	"os"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/flexvolume/block"
	"berth.io/berth/internal/flexvolume/cifs"
	"berth.io/berth/internal/flexvolume/lvm"
	"berth.io/berth/internal/flexvolume/nfs"
)

// Version is set when the program is linked.
var Version = "dev"

// drivers is the table: the name that argv[0] ends in.
var drivers = map[string]func() flexvolume.Driver{
	"block": func() flexvolume.Driver { return block.New() },
	"cifs":  cifs.New,
	"lvm":   lvm.New,
	"nfs":   nfs.New,
}

func main() { os.Exit(flexvolume.Main(drivers, Version)) }
