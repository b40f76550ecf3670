package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"berth.io/berth/internal/control"
	"berth.io/berth/internal/docker"
	"berth.io/berth/internal/standalone"
)

// pluginFlags are those of `berth up` for container engines.
func pluginFlags(c *cobra.Command, o *standalone.Options) {
	f := c.Flags()
	f.StringVar(&o.Plugin, "docker-plugin", "", "name of the volume plugin for Docker and Podman, "+standalone.NoPlugin+" for none (default: "+docker.DefaultName+" for the instance in "+string(standalone.DefaultDataDir)+", none for others)")
	f.StringVar(&o.PluginDir, "docker-plugin-dir", "", "directory of the plugin's socket, NAME.sock (default: "+docker.DefaultDir+", where Docker looks)")
	_ = c.MarkFlagDirname("docker-plugin-dir")
	_ = c.RegisterFlagCompletionFunc("docker-plugin", cobra.FixedCompletions([]string{docker.DefaultName, standalone.NoPlugin}, cobra.ShellCompDirectiveNoFileComp))
}

func (v *volumeCommand) mount() *cobra.Command {
	var readOnly, over bool
	var wait time.Duration
	c := &cobra.Command{
		Use:   "mount NAME PATH",
		Short: "Make a volume appear at a directory of this host",
		Long: `Make a volume appear at a directory of this host, which is made when it is not there. It stays until ` + "`berth volume unmount`" + `:
when berth restarts it is not touched, and after ` + "`berth down`" + ` or a restart of the machine the next ` + "`berth up`" + ` mounts it again.
Mounted there already: nothing is done. A directory with something in it is refused, as the volume would hide that.`,
		Example: `  berth volume mount data /srv/data
  berth volume mount data /mnt --read-only
  berth volume mount --wait 2m data /srv/data  # in a unit: wait until berth up runs`,
		Args: counted(2, 2, "name a volume and a directory"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			q := url.Values{"namespace": {v.namespace}, "name": {args[0]}, "path": {path},
				"readOnly": {strconv.FormatBool(readOnly)}, "over": {strconv.FormatBool(over)}}
			if err := v.post(c.Context(), standalone.PathVolumeMount, q, wait, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "volume %s is mounted at %s\n", args[0], path)
			return err
		},
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "nobody can write there")
	c.Flags().BoolVar(&over, "over", false, "also over a directory that is not empty; what is in it is hidden meanwhile")
	waitFlag(c, &wait)
	c.ValidArgsFunction = func(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		return v.completeVolumes(c, args, typed)
	}
	return c
}

func waitFlag(c *cobra.Command, wait *time.Duration) {
	c.Flags().DurationVar(wait, "wait", 0, "how long to wait for an instance that does not run yet")
}

func (v *volumeCommand) unmount() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:     "unmount NAME | PATH",
		Aliases: []string{"umount"},
		Short:   "Take a volume away from where it is mounted on this host",
		Long: `Take a volume away from every directory of this host at which it is mounted, or from one directory. While a process has
a file or its working directory there, it stays, and the process is named. Not mounted: nothing is done.

With --force, callers that a killed container engine left behind are forgotten as well: use it when ` + "`berth volume list`" + ` shows
a container that is not there any more. It refuses while a container really has the volume, and for 10 s after an engine has got
a path, as its container may be starting.`,
		Example: `  berth volume unmount data
  berth volume unmount /srv/data
  berth volume unmount -n docker --force data`,
		Args: counted(1, 1, "name a volume or a directory"),
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{"namespace": {v.namespace}}
			if strings.Contains(args[0], "/") {
				path, err := filepath.Abs(args[0])
				if err != nil {
					return err
				}
				if force {
					return &exitError{exitUsage, errors.New("--force forgets the callers of a volume: name the volume, not a directory")}
				}
				q.Set("path", path)
			} else {
				q.Set("name", args[0])
				q.Set("force", strconv.FormatBool(force))
			}
			var done standalone.Unmounted
			if err := v.post(c.Context(), standalone.PathVolumeUnmount, q, 0, &done); err != nil {
				return err
			}
			text := args[0] + " is unmounted"
			if done.Count == 0 {
				text = "nothing of Berth is mounted: " + args[0]
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), text)
			return err
		},
	}
	c.Flags().BoolVar(&force, "force", false, "forget the callers that a killed container engine left, too")
	c.ValidArgsFunction = v.completeVolumes
	return c
}

// post asks the running instance; wait is how long one that does not run yet is waited for.
func (v *volumeCommand) post(ctx context.Context, path string, q url.Values, wait time.Duration, answer any) error {
	d, err := v.dir()
	if err != nil {
		return err
	}
	ask := func() error { return control.NewClient(d.Control()).Post(ctx, path+"?"+q.Encode(), answer) }
	if err = ask(); wait > 0 && errors.Is(err, control.ErrNotRunning) {
		err = askWhenUp(ctx, filepath.Dir(d.Control()), wait, ask)
	}
	if errors.Is(err, control.ErrNotRunning) && wait == 0 {
		return fmt.Errorf("%s: %w; start one with `berth up`", d, control.ErrNotRunning)
	}
	return err
}

// askWhenUp asks again whenever something changes beside the control socket, until somebody answers.
func askWhenUp(ctx context.Context, dir string, wait time.Duration, ask func() error) error {
	if os.Geteuid() != 0 {
		return errors.New("only root can wait for the instance")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("inotify: %w (raise fs.inotify.max_user_instances)", err)
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		err := ask()
		if !errors.Is(err, control.ErrNotRunning) {
			return err
		}
		select {
		case <-w.Events:
		case err := <-w.Errors:
			return err
		case <-t.C:
			return fmt.Errorf("%w, and none was started for %s", err, wait)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
