package standalone

import "context"

func (in *instance) holders() any { return nil }

func (in *instance) status(ctx context.Context) (any, error) { return nil, nil }
