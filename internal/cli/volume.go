package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/volume"
)

// volumeCommand is what the subcommands of `berth volume` share.
type volumeCommand struct {
	*global
	namespace string
}

func newVolume(g *global) *cobra.Command {
	v := &volumeCommand{global: g}
	c := &cobra.Command{
		Use:   "volume",
		Short: "Make, mount and remove volumes by name, for scripts and systemd units",
		Long: `Make, mount and remove volumes by name, for scripts and systemd units. A volume is a claim: kubectl sees it,
` + "`berth why pvc/NAME`" + ` explains it. Those of Docker and Podman are in the namespace docker.`,
		Example: `  berth volume create data --size 10Gi
  berth volume mount data /srv/data          # stays, also after a restart of the machine
  berth volume snapshot data before-upgrade
  berth volume unmount data
  berth volume rm data
  berth volume list --all-namespaces`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &exitError{exitUsage, fmt.Errorf("unknown command %q for %q; see `%[2]s --help`", args[0], c.CommandPath())}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.PersistentFlags().StringVarP(&v.namespace, "namespace", "n", metav1.NamespaceDefault, "namespace of the volume; container engines' volumes are in docker")
	_ = c.RegisterFlagCompletionFunc("namespace", v.completeNamespaces)
	c.AddCommand(v.create(), v.list(), v.mount(), v.unmount(), v.snapshot(), v.restore(), v.resize(), v.remove())
	return c
}

// volumes is the service for what changes objects of the API.
func (v *volumeCommand) volumes() (*volume.Service, error) {
	client, err := v.client()
	if err != nil {
		return nil, err
	}
	snaps, _, err := v.snapshots()
	if err != nil {
		return nil, err
	}
	return volume.New(volume.Options{Client: client, Snapshots: snaps}), nil
}

// change runs a change of objects; an API that does not answer is told as an instance that does not run.
func (v *volumeCommand) change(c *cobra.Command, do func(ctx context.Context, s *volume.Service) error) error {
	s, err := v.volumes()
	if err != nil {
		return err
	}
	err = do(c.Context(), s)
	var status apierrors.APIStatus
	var refused *volume.RefusedError
	if err == nil || errors.As(err, &status) || errors.As(err, &refused) || errors.Is(err, volume.ErrNotFound) {
		return err
	}
	return v.reached(c.Context(), err)
}

func (v *volumeCommand) create() *cobra.Command {
	r := map[string]*string{}
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a volume",
		Long: `Make a volume: a claim in the namespace. Its storage is made when it is first mounted, where its class says so
(WaitForFirstConsumer, as the default class does). A volume of that name with the same options is there already: nothing
is done.`,
		Example: `  berth volume create data --size 10Gi
  berth volume create logs --size 2Gi --fs-type xfs
  berth volume create copy --clone data`,
		Args: counted(1, 1, "name one volume"),
		RunE: func(c *cobra.Command, args []string) error {
			given := map[string]string{}
			for option, value := range r {
				if *value != "" {
					given[option] = *value
				}
			}
			request, err := volume.ParseOptions(args[0], given)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return v.change(c, func(ctx context.Context, s *volume.Service) error {
				if err := s.Create(ctx, v.namespace, request); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "volume %s created\n", args[0])
				return err
			})
		},
	}
	flag := func(option, name, help string) {
		r[option] = c.Flags().String(name, "", help)
	}
	flag("size", "size", "size such as 10Gi (default: that of the source, else "+volume.DefaultSize+")")
	flag("class", "class", "StorageClass (default: that of the source, else the default class)")
	flag("fsType", "fs-type", "filesystem, such as ext4, xfs or btrfs (default: the class's)")
	flag("snapshot", "snapshot", "snapshot to begin with")
	flag("clone", "clone", "volume to begin with a copy of")
	_ = c.RegisterFlagCompletionFunc("class", v.completeClasses)
	_ = c.RegisterFlagCompletionFunc("fs-type", cobra.FixedCompletions([]string{"ext4", "xfs", "btrfs"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("snapshot", v.completeSnapshots)
	_ = c.RegisterFlagCompletionFunc("clone", func(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return v.completeVolumes(c, nil, typed)
	})
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func (v *volumeCommand) list() *cobra.Command {
	var all bool
	var out *format
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List volumes, and who has them mounted",
		Example: `  berth volume list
  berth volume list -A                       # those of Docker and Podman as well
  berth volume list -o json`,
		Args: counted(0, 0, "list takes no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			namespace := v.namespace
			if all {
				namespace = metav1.NamespaceAll
			}
			return v.change(c, func(ctx context.Context, s *volume.Service) error {
				found, err := s.List(ctx, namespace)
				if err != nil {
					return err
				}
				return out.write(c.OutOrStdout(), found, func(w io.Writer) error { return listVolumes(w, found, all) })
			})
		},
	}
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "volumes of all namespaces")
	out = outputFlag(c)
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

func listVolumes(w io.Writer, found []volume.Volume, all bool) error {
	if len(found) == 0 {
		_, err := fmt.Fprintln(w, "none")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(namespace string, columns ...string) {
		if all {
			columns = append([]string{namespace}, columns...)
		}
		fmt.Fprintln(t, strings.Join(columns, "\t"))
	}
	line("NAMESPACE", "NAME", "SIZE", "CLASS", "STATUS", "USED BY")
	for _, v := range found {
		size := v.Size
		if v.Capacity != "" {
			size = v.Capacity
		}
		status := v.Phase
		if v.Deleting {
			status = "Deleting"
		}
		used := v.UsedBy()
		if used == "" {
			used = "-"
		}
		line(v.Namespace, v.Name, size, v.Class, status, used)
	}
	return t.Flush()
}

func (v *volumeCommand) snapshot() *cobra.Command {
	var class string
	c := &cobra.Command{
		Use:   "snapshot NAME [SNAPSHOT]",
		Short: "Take a snapshot of a volume",
		Long: `Take a snapshot of a volume, mounted or not, and wait until it can be used. Without a name for it, the snapshot is named
after the volume and the time; its name is printed.`,
		Example: `  berth volume snapshot data before-upgrade
  berth kubectl get volumesnapshot           # the snapshots
  berth volume snapshot -n docker data       # of a volume of Docker or Podman`,
		Args: counted(1, 2, "name a volume, and a name for the snapshot"),
		RunE: func(c *cobra.Command, args []string) error {
			name := volume.ClaimName(args[0]) + time.Now().Format("-20060102-150405")
			if len(args) == 2 {
				name = args[1]
			}
			if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
				return &exitError{exitUsage, fmt.Errorf("snapshot name %q: %s", name, strings.Join(errs, "; "))}
			}
			return v.change(c, func(ctx context.Context, s *volume.Service) error {
				if err := s.Snapshot(ctx, v.namespace, args[0], name, class); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "snapshot %s of volume %s can be used\n", name, args[0])
				return err
			})
		},
	}
	c.Flags().StringVar(&class, "class", "", "VolumeSnapshotClass (default: the driver's default class)")
	c.ValidArgsFunction = v.completeVolumes
	return c
}

func (v *volumeCommand) restore() *cobra.Command {
	var size, class string
	c := &cobra.Command{
		Use:   "restore SNAPSHOT NEW",
		Short: "Make a volume from a snapshot",
		Example: `  berth volume restore before-upgrade data-before
  berth volume restore before-upgrade larger --size 20Gi`,
		Args: counted(2, 2, "name a snapshot and the new volume"),
		RunE: func(c *cobra.Command, args []string) error {
			given := map[string]string{"snapshot": args[0]}
			if size != "" {
				given["size"] = size
			}
			if class != "" {
				given["class"] = class
			}
			request, err := volume.ParseOptions(args[1], given)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return v.change(c, func(ctx context.Context, s *volume.Service) error {
				if err := s.Create(ctx, v.namespace, request); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "volume %s created from snapshot %s\n", args[1], args[0])
				return err
			})
		},
	}
	c.Flags().StringVar(&size, "size", "", "size such as 20Gi, at least that of the snapshot (default: the same)")
	c.Flags().StringVar(&class, "class", "", "StorageClass (default: that of the snapshot's volume)")
	_ = c.RegisterFlagCompletionFunc("class", v.completeClasses)
	c.ValidArgsFunction = v.completeSnapshots
	return c
}

func (v *volumeCommand) resize() *cobra.Command {
	c := &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Make a volume larger",
		Long:  `Make a volume larger. A filesystem that cannot grow while it is mounted, or is not mounted, grows with the next mount.`,
		Example: `  berth volume resize data 20Gi
  berth volume resize -n docker data 20Gi`,
		Args: counted(2, 2, "name a volume and its new size"),
		RunE: func(c *cobra.Command, args []string) error {
			size, err := volume.ParseSize(args[1])
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return v.change(c, func(ctx context.Context, s *volume.Service) error {
				outcome, err := s.Resize(ctx, v.namespace, args[0], *size)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), outcome)
				return err
			})
		},
	}
	c.ValidArgsFunction = v.completeVolumes
	return c
}

func (v *volumeCommand) remove() *cobra.Command {
	c := &cobra.Command{
		Use:     "rm NAME ...",
		Aliases: []string{"remove"},
		Short:   "Remove volumes that nobody uses, with their data",
		Long: `Remove volumes that nobody uses, with their data (unless their class says Retain). One that is in use is refused, and
there is no flag against that: unmount it first.`,
		Example: `  berth volume rm data
  berth volume rm -n docker data logs`,
		Args: counted(1, -1, "name a volume"),
		RunE: func(c *cobra.Command, args []string) error {
			return v.change(c, func(ctx context.Context, s *volume.Service) error {
				var errs []error
				for _, name := range args {
					if err := s.Remove(ctx, v.namespace, name); err != nil {
						errs = append(errs, err)
						continue
					}
					fmt.Fprintf(c.OutOrStdout(), "volume %s removed\n", name)
				}
				return errors.Join(errs...)
			})
		},
	}
	c.ValidArgsFunction = func(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return v.completeVolumes(c, nil, typed)
	}
	return c
}

// counted gives a wrong number of arguments its exit code and says what is wanted; most below zero is any number.
func counted(least, most int, want string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return &exitError{exitUsage, fmt.Errorf("%s: %s; see `%[1]s --help`", c.CommandPath(), want)}
		}
		return nil
	}
}

// completeVolumes offers the volumes of the namespace as the first argument.
func (v *volumeCommand) completeVolumes(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return v.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
		list, err := client.CoreV1().PersistentVolumeClaims(v.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for i := range list.Items {
			names = append(names, volume.NameOf(&list.Items[i]))
		}
		return names
	})
}

func (v *volumeCommand) completeNamespaces(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return v.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
		list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		return names
	})
}

func (v *volumeCommand) completeClasses(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return v.names(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
		list, err := client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		return names
	})
}

func (v *volumeCommand) completeSnapshots(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && c.Name() == "restore" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
	defer cancel()
	s, err := v.volumes()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return s.Snapshots(ctx, v.namespace), cobra.ShellCompDirectiveNoFileComp
}
