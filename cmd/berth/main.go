// berth is the whole product in one program: an instance on one host (`berth up`), its command line, and in a cluster
// the drivers with all their sidecars.
package main

import (
	"os"

	"berth.io/berth/internal/cli"
)

func main() { os.Exit(cli.Main()) }
