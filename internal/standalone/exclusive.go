package standalone

import (
	"context"

	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/node/flexsocket"
)

// besideFlexVolume is the backend that the CSI driver serves while FlexVolume serves it, too: a volume is attached by one of them.
type besideFlexVolume struct {
	*block.Backend
	flex *flexsocket.Server
}

// Attach implements backend.Controller.
func (b besideFlexVolume) Attach(ctx context.Context, id, node string, readOnly bool) error {
	return b.flex.Exclude(ctx, "block", id, func() error { return b.Backend.Attach(ctx, id, node, readOnly) })
}
