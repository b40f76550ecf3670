package discovery

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The scripts that the original's image has. What they do is built in: who switches need not have them.
const (
	scripts      = "/scripts/"
	cleanQuick   = scripts + "quick_reset.sh"
	cleanDiscard = scripts + "blkdiscard.sh"
	cleanZero    = scripts + "dd_zero.sh"
	cleanShred   = scripts + "shred.sh"
	cleanFS      = scripts + "fsclean.sh"
)

// method is how a device is cleaned.
type method int

const (
	// quick discards; a device that cannot loses the signatures at its ends, and all when it is given raw: who gets a filesystem
	// never sees what is between, who gets the device does.
	quick method = iota
	discard
	zero
	shred
	external
)

// cleaner is a blockCleanerCommand.
type cleaner struct {
	method  method
	passes  int      // of shred
	command []string // external
	written []string // the blockCleanerCommand as it is
}

// maxPasses bounds shred: more is a slip of the hand.
const maxPasses = 100

// name is the command as the original's metrics label it.
func (c cleaner) name() string {
	switch c.method {
	case quick:
		return cleanQuick
	case discard:
		return cleanDiscard
	case zero:
		return cleanZero
	case shred:
		return cleanShred
	}
	return c.command[0]
}

// newCleaner reads a blockCleanerCommand: one of the original's scripts, or a program of the user's, which need not be here where it is
// elsewhere that it runs.
func newCleaner(command []string, elsewhere bool) (c cleaner, note string, err error) {
	defer func() { c.written = slices.Clone(command) }()
	if len(command) == 0 {
		return c, "", errors.New("it is empty; leave it out for " + cleanQuick)
	}
	for _, arg := range command {
		if strings.ContainsRune(arg, 0) {
			return c, "", fmt.Errorf("%q has a zero byte in it", arg)
		}
	}
	program, args := command[0], command[1:]
	built, is := map[string]method{cleanQuick: quick, cleanDiscard: discard, cleanZero: zero, cleanShred: shred, cleanFS: quick}[program]
	switch {
	case is && program == cleanFS:
		return cleaner{method: quick}, cleanFS + " is for directories, which are emptied in any case; devices are cleaned as by " + cleanQuick, nil
	case is && program == cleanShred:
		return shredder(args)
	case is:
		if len(args) > 0 {
			note = fmt.Sprintf("the arguments %q are ignored: what %s does is built in", args, program)
		}
		return cleaner{method: built}, note, nil
	case !filepath.IsAbs(program):
		return c, "", fmt.Errorf("%q is not an absolute path", program)
	}
	c = cleaner{method: external, command: slices.Clone(command)}
	if elsewhere {
		return c, "", nil
	}
	return c, "", c.runnable()
}

// runnable says whether a user's program is here.
func (c cleaner) runnable() error {
	if c.method != external {
		return nil
	}
	st, err := os.Stat(c.command[0])
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return fmt.Errorf("%s is no program that can be run", c.command[0])
	}
	return nil
}

// shredder is shred.sh with its one argument, the number of passes; it has 3 without.
func shredder(args []string) (cleaner, string, error) {
	c := cleaner{method: shred, passes: 3}
	if len(args) == 0 {
		return c, "", nil
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 0 || n > maxPasses {
		return c, "", fmt.Errorf("%q is no number of passes from 0 to %d", args[0], maxPasses)
	}
	c.passes = n
	return c, "", nil
}
