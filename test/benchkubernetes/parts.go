package main

import (
	"fmt"
	"slices"
	"strings"
)

// The parts of a run, in their order. Each can be measured alone.
const (
	partIdle  = "idle"  // memory without volumes
	partNoop  = "noop"  // claims and attachments of drivers that do nothing
	partBlock = "block" // claims of Berth's own driver
	partMany  = "many"  // memory with many volumes
)

var allParts = parts{partIdle, partNoop, partBlock, partMany}

// parts is a flag: names of allParts.
type parts []string

func (p *parts) String() string { return strings.Join(*p, ",") }

func (p *parts) Set(s string) error {
	var chosen parts
	asked := strings.Split(s, ",")
	for _, part := range allParts {
		if slices.Contains(asked, part) {
			chosen = append(chosen, part)
		}
	}
	for _, part := range asked {
		if !slices.Contains(allParts, part) {
			return fmt.Errorf("%q is none of %s", part, strings.Join(allParts, ", "))
		}
	}
	*p = chosen
	return nil
}
