//go:build component

package cluster

import (
	"testing"

	"berth.io/berth/test/apart"
)

func TestMain(m *testing.M) { apart.Run(m) }
