//go:build component

package flexsocket

import (
	"testing"

	"berth.io/berth/test/apart"
)

func TestMain(m *testing.M) { apart.Run(m) }
