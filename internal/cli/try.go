package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/try"
)

func newTry() *cobra.Command {
	var o try.Options
	var class, mutable, secrets []string
	var output string
	c := &cobra.Command{
		Use:   "try --driver SOCKET|COMMAND",
		Short: "Try a CSI driver: the real flow, csi-sanity and faults, without a cluster",
		Long: `Try a CSI driver. A private instance is started, the driver is registered in it behind a proxy that records each RPC,
and the whole life of volumes is played through the API: provision, attach, mount, restart, expand, snapshot, clone,
whatever the driver advertises. Then csi-sanity, and faults: the driver killed in each RPC, answers lost, requests late
or sent twice, the node restarted, a hundred volumes at once. Each step tells its RPCs, what Kubernetes would have shown,
and what breaks the CSI specification, with the section.

The driver is a socket that it serves, or the command that starts it (then it can be killed, too). A command may have
{{socket}}, {{endpoint}} (unix://…), {{node}} and {{dir}} (an empty directory that goes at the end) in it; CSI_ENDPOINT and
NODE_ID are set in its environment. A started driver runs in namespaces of its own: its mounts are seen by nobody else and end with
it, and without root it may mount all the same, where user namespaces are allowed.

Exit codes: 0 nothing failed, 1 something did, 2 nothing was tried (the command line is wrong, or there is no driver).`,
		Example: `  berth try --driver './my-driver --endpoint={{endpoint}} --nodeid={{node}} --state={{dir}}'
  berth try --driver /run/my-driver/csi.sock --class-parameters pool=fast,replicas=2 --secret user=admin --junit report.xml
  berth try --driver ./my-driver --only protocol,mount,fault-kill   # only these steps; an unknown one lists all
  berth try --driver ./my-driver -o json > report.json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if code, handled := try.Helper(c.Context(), os.Stdout); handled {
				return codeOf(code)
			}
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("--output %q: want text or json", output)}
			}
			var err error
			if o.ClassParameters, err = try.ParseParameters("--class-parameters", class); err != nil {
				return &exitError{exitUsage, err}
			}
			if o.MutableParameters, err = try.ParseParameters("--mutable-parameters", mutable); err != nil {
				return &exitError{exitUsage, err}
			}
			if o.Secrets, err = try.ParseSecrets(secrets); err != nil {
				return &exitError{exitUsage, err}
			}
			o.Version, o.Out, o.Color = Version, c.OutOrStdout(), isTerminal(c.OutOrStdout())
			if output == "json" {
				o.Out, o.Color = os.Stderr, isTerminal(os.Stderr)
			}
			return runTry(c, o, output == "json")
		},
	}
	f := c.Flags()
	f.StringVar(&o.Driver, "driver", "", "socket of the driver, or the command that starts it")
	f.StringVar(&o.Controller, "controller", "", "the same for its controller service, when that is not on the same socket")
	f.StringArrayVar(&class, "class-parameters", nil, "KEY=VALUE,… parameters of the StorageClass; repeatable")
	f.StringArrayVar(&mutable, "mutable-parameters", nil, "KEY=VALUE,… parameters of a VolumeAttributesClass, for csi-sanity's specs of MODIFY_VOLUME; repeatable")
	f.StringArrayVar(&secrets, "secret", nil, "KEY=VALUE, or a YAML or JSON file with a map: given to every RPC that takes secrets; repeatable")
	f.StringVar(&o.CSIDriver, "csidriver", "", "manifest of the driver's CSIDriver object (default: made from its capabilities)")
	f.StringVar(&o.JUnit, "junit", "", "write the report as JUnit XML to this file")
	f.StringSliceVar(&o.Only, "only", nil, "only these steps or groups (protocol, flow, sanity, faults)")
	f.StringSliceVar(&o.Skip, "skip", nil, "not these steps or groups")
	f.StringVar(&o.Size, "size", try.DefaultSize, "size of a volume")
	f.IntVar(&o.Scale, "scale", try.DefaultScale, "how many volumes at once in the last step")
	f.DurationVar(&o.Timeout, "timeout", try.DefaultTimeout, "end the run after this time")
	f.BoolVar(&o.Keep, "keep", false, "leave the directory of the run, with the logs of driver and instance")
	f.StringVarP(&output, "output", "o", "text", "text, or json (all RPCs and their messages, secrets stripped)")
	_ = c.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(try.StepNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("skip", cobra.FixedCompletions(try.StepNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.MarkFlagFilename("junit", "xml")
	_ = c.MarkFlagFilename("csidriver", "yaml", "yml")
	return c
}

func codeOf(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// runTry runs the bench and turns its outcome into an exit code.
func runTry(c *cobra.Command, o try.Options, asJSON bool) error {
	report, err := try.Run(c.Context(), o)
	if errors.Is(err, try.ErrUsage) {
		return &exitError{exitUsage, err}
	}
	if report == nil {
		return err
	}
	if o.JUnit != "" {
		err = errors.Join(err, report.SaveJUnit(o.JUnit))
	}
	if asJSON {
		e := json.NewEncoder(c.OutOrStdout())
		e.SetIndent("", "  ")
		err = errors.Join(err, e.Encode(report))
	}
	if err == nil && !report.OK() {
		return &exitError{code: 1}
	}
	return err
}
