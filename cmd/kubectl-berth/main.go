// kubectl-berth is a plugin of kubectl: put it on the PATH, and `kubectl berth why pvc/NAME` tells why a volume is where it is, in any
// cluster. A link to it named kubectl_complete-berth beside it completes the command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"berth.io/berth/internal/kubectlberth"
)

// Version is set when the program is linked.
var Version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := kubectlberth.Run(ctx, Version, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
