// audit compares what an API server saw with roles.yaml: verbs that are granted and were never used, and requests that were refused.
//
//	go run ./audit [-roles roles.yaml] [-namespace berth-system] AUDIT-LOG...
//
// The log is of kube-apiserver --audit-policy-file=test/deploy/audit/policy.yaml --audit-log-path=…; it exits with 1 when
// anything is unused, refused, or was done without being in the table.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"berth.io/berth/test/deploy/roles"
)

func main() {
	table := flag.String("roles", "roles.yaml", "the table of roles")
	namespace := flag.String("namespace", "berth-system", "namespace of Berth's service accounts")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: audit [-roles FILE] [-namespace NAME] AUDIT-LOG...")
		os.Exit(2)
	}
	all, err := roles.Read(*table)
	if err == nil {
		err = run(os.Stdout, all, *namespace, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "audit:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, all []roles.Role, namespace string, logs []string) error {
	seen := newSeen(namespace)
	for _, name := range logs {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = seen.read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if seen.events == 0 {
		return fmt.Errorf("no request of a service account of %s is in the log", namespace)
	}
	found := seen.compare(all, namespace)
	for _, line := range found {
		fmt.Fprintln(out, line)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d differences to the table, of %d requests", len(found), seen.events)
	}
	fmt.Fprintf(out, "%d requests: every verb of the table was used, and no other was asked for\n", seen.events)
	return nil
}
