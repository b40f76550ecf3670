// generate writes what is made of other files, so that none differs from its source:
//
//	deploy/kubernetes/crds        the definitions of snapshots as `berth up` has them, beside our own (go generate ./api/...)
//	deploy/helm/berth/crds        the same for Helm
//	deploy/kubernetes/*.yaml      the chart with its defaults, for kubectl apply -k
//	docs/kubernetes.md            the table of permissions, from test/deploy/roles.yaml
//
// It is run in test/deploy: go run ./generate [-check]. With -check nothing is written, and a difference is an error.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	root := flag.String("root", "../..", "the project's directory")
	check := flag.Bool("check", false, "write nothing; fail when something would be written")
	flag.Parse()
	if err := run(*root, *check); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	want, err := files(root)
	if err != nil {
		return err
	}
	if check {
		return want.compare(root)
	}
	return want.write(root)
}
