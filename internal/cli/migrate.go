package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/migrate"
	"berth.io/berth/internal/standalone"
)

func newMigrate(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Turn volumes of older drivers into CSI volumes",
		Long:  `Turn volumes of older drivers into CSI volumes, and back: the same data, claim and size. Nothing is copied.`,
		Example: `  berth migrate flexvolume data-0 --dry-run
  berth migrate flexvolume -l app=database`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &exitError{exitUsage, fmt.Errorf("unknown command %q for %q; see `%[2]s --help`", args[0], c.CommandPath())}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newMigrateFlexVolume(g))
	return c
}

// migrateFlags are what was typed.
type migrateFlags struct {
	*global
	kubeconfig, kubeContext string
	selector, undo, undoDir string
	node                    string
	blockDrivers            []string
	dryRun                  bool
	within                  time.Duration
}

func newMigrateFlexVolume(g *global) *cobra.Command {
	f := &migrateFlags{global: g}
	c := &cobra.Command{
		Use:   "flexvolume PV... | -l SELECTOR | --undo FILE",
		Short: "Turn PersistentVolumes of FlexVolume drivers into CSI volumes: the same data, claim and size",
		Long: `Turn PersistentVolumes of FlexVolume drivers into CSI volumes: the same data, claim, name and size. No data is copied or
touched: the PersistentVolume object is removed and made anew with another source, and its claim stays bound to it. For a moment
the claim is Lost, and the API tells so in an event.

FlexVolume deletes no volume. With the reclaim policy Delete, the CSI driver deletes a migrated volume and its data with its claim:
set Retain to keep the data. The command names the volumes with Delete, also with --dry-run.

A volume that is in use is refused: end its pods first. What was there before is written to an undo file before anything is
changed; ` + "`--undo FILE`" + ` takes it back. A run that was killed is completed by the next one, or taken back.

Block volumes can be migrated today (berth/block to block.csi.berth.io). It works on the instance of --data-dir, and with
--kubeconfig on any cluster that has the CSI driver.`,
		Example: `  berth migrate flexvolume data-0 --dry-run      # would it work?
  berth migrate flexvolume data-0 data-1
  berth migrate flexvolume -l app=database
  berth migrate flexvolume --undo /var/lib/berth/migrate/data-0.5f0c.json
  berth migrate flexvolume data-0 --kubeconfig ~/.kube/config --node node-1
  berth migrate flexvolume data-0 --block-driver acme/block   # Berth's driver, installed as another vendor's`,
		RunE: func(c *cobra.Command, args []string) error {
			selector, err := f.validate(args)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return f.run(c, args, selector)
		},
		ValidArgsFunction: f.completeVolumes,
	}
	flags := c.Flags()
	flags.StringVarP(&f.selector, "selector", "l", "", "migrate the FlexVolume volumes with these labels, such as app=database")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check and tell, and change nothing")
	flags.StringVar(&f.undo, "undo", "", "undo file of a migration to take back")
	flags.StringVar(&f.undoDir, "undo-dir", "", "directory for undo files (default: migrate/ in the data directory, with --kubeconfig ~/.local/state/berth/migrate)")
	flags.StringArrayVar(&f.blockDrivers, "block-driver", nil, "VENDOR/DRIVER that is Berth's block driver beside "+migrate.FlexBlock+"; repeatable")
	flags.StringVar(&f.node, "node", "", "node whose pool has the volumes, when several nodes have the CSI driver and the volumes no node affinity")
	flags.DurationVar(&f.within, "timeout", 2*time.Minute, "how long a claim may take to be Bound again")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster (default: that of the instance in --data-dir)")
	flags.StringVar(&f.kubeContext, "context", "", "context of the kubeconfig (default: its current one)")
	_ = c.MarkFlagFilename("undo", "json")
	_ = c.MarkFlagFilename("kubeconfig")
	_ = c.MarkFlagDirname("undo-dir")
	_ = c.RegisterFlagCompletionFunc("node", f.completeNodes)
	for _, name := range []string{"selector", "block-driver", "timeout", "context"} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return c
}

// validate looks at what was typed; the selector is nil when there is none.
func (f *migrateFlags) validate(args []string) (labels.Selector, error) {
	given := 0
	for _, is := range []bool{len(args) > 0, f.selector != "", f.undo != ""} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, errors.New("name PersistentVolumes, or choose them with -l, or give --undo FILE; see `berth migrate flexvolume --help`")
	case given > 1:
		return nil, errors.New("names of PersistentVolumes, -l and --undo exclude each other")
	case f.within <= 0:
		return nil, fmt.Errorf("--timeout %s must be greater than zero", f.within)
	case f.kubeContext != "" && f.kubeconfig == "":
		return nil, errors.New("--context is of a --kubeconfig")
	}
	for _, d := range f.blockDrivers {
		if vendor, driver, ok := strings.Cut(d, "/"); !ok || vendor == "" || driver == "" || strings.Contains(driver, "/") {
			return nil, fmt.Errorf("--block-driver %q is not VENDOR/DRIVER", d)
		}
	}
	for _, name := range args {
		if name == "" {
			return nil, errors.New("a PersistentVolume's name is empty")
		}
	}
	if f.selector == "" {
		return nil, nil
	}
	selector, err := labels.Parse(f.selector)
	if err != nil {
		return nil, fmt.Errorf("-l %q: %w", f.selector, err)
	}
	return selector, nil
}

func (f *migrateFlags) run(c *cobra.Command, args []string, selector labels.Selector) error {
	client, err := f.reach()
	if err != nil {
		return err
	}
	dir := f.undoDir
	if f.undo != "" && dir == "" {
		dir = filepath.Dir(f.undo)
	}
	if dir == "" {
		if dir, err = f.defaultUndoDir(); err != nil {
			return err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	m := &migrate.Migration{Client: client, BlockDrivers: append([]string{migrate.FlexBlock}, f.blockDrivers...), Node: f.node, UndoDir: dir,
		Again: f.again, Within: f.within, DryRun: f.dryRun, Out: c.OutOrStdout()}
	if f.undo != "" {
		err = m.Undo(c.Context(), f.undo)
	} else {
		slices.Sort(args)
		err = m.Volumes(c.Context(), slices.Compact(args), selector)
	}
	if errors.Is(c.Context().Err(), context.Canceled) {
		return errors.New("interrupted: the same command completes what was begun, --undo with the undo file takes it back")
	}
	return err
}

// again is the command line that undoes, from the file, what this one does.
func (f *migrateFlags) again(file string) string {
	line := []string{"berth", "migrate", "flexvolume"}
	if d, err := f.dir(); err == nil && f.kubeconfig == "" && d != standalone.DefaultDataDir {
		line = append(line, "--data-dir", string(d))
	}
	if f.kubeconfig != "" {
		line = append(line, "--kubeconfig", f.kubeconfig)
	}
	if f.kubeContext != "" {
		line = append(line, "--context", f.kubeContext)
	}
	line = append(line, "--undo", file)
	for i, word := range line {
		line[i] = shellWord(word)
	}
	return strings.Join(line, " ")
}

// plainWord is what no POSIX shell takes for more than a word.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// shellWord quotes what a shell would take for more than one word, or expand (POSIX Shell Command Language 2.2.2).
func shellWord(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func (f *migrateFlags) reach() (kubernetes.Interface, error) {
	if f.kubeconfig == "" {
		return f.client()
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: f.kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: f.kubeContext}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	cfg.Timeout = time.Minute // of one request; a watch is begun anew
	cfg.QPS, cfg.Burst = 50, 100
	return kubernetes.NewForConfig(cfg)
}

// defaultUndoDir is where a second run looks, wherever it is started.
func (f *migrateFlags) defaultUndoDir() (string, error) {
	if f.kubeconfig == "" {
		d, err := f.dir()
		return filepath.Join(string(d), "migrate"), err
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "berth", "migrate"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no home directory for the undo files (%w): name one with --undo-dir", err)
	}
	return filepath.Join(home, ".local", "state", "berth", "migrate"), nil
}

// completeVolumes offers the FlexVolume volumes that are not named yet.
func (f *migrateFlags) completeVolumes(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return f.offer(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
		list, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for _, pv := range list.Items {
			if pv.Spec.FlexVolume != nil && !slices.Contains(args, pv.Name) {
				names = append(names, pv.Name)
			}
		}
		return names
	})
}

func (f *migrateFlags) completeNodes(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return f.offer(c, func(ctx context.Context, client kubernetes.Interface) (names []string) {
		list, err := client.StorageV1().CSINodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil
		}
		for _, n := range list.Items {
			names = append(names, n.Name)
		}
		return names
	})
}

func (f *migrateFlags) offer(c *cobra.Command, list func(context.Context, kubernetes.Interface) []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
	defer cancel()
	client, err := f.reach()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return list(ctx, client), cobra.ShellCompDirectiveNoFileComp
}
