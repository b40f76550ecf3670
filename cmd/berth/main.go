// berth is the whole product in one program: an instance on one host (`berth up`), its command line, and in a cluster
// the drivers with all their sidecars.
package main

import (
	"os"

	"berth.io/berth/internal/cli"
	"berth.io/berth/internal/node/holderexec"
)

func main() {
	holderexec.Main() // returns at once unless this execution is the helper of `berth exec`
	os.Exit(cli.Main())
}
