package block

import (
	"errors"
	"testing"

	"berth.io/berth/internal/backend"
)

func TestSnapshotParameters(t *testing.T) {
	for name, test := range map[string]struct {
		parameters map[string]string
		refused    bool
	}{
		"none":                         {nil, false},
		"the class's own policy again": {map[string]string{"deletionPolicy": "Retain"}, false},
		"a policy that there is not":   {map[string]string{"deletionPolicy": "Forget"}, true},
		"an unknown one":               {map[string]string{"colour": "blue"}, true},
		"an unknown one beside it":     {map[string]string{"deletionPolicy": "Delete", "colour": "blue"}, true},
	} {
		if err := CheckSnapshotParameters(test.parameters); (err != nil) != test.refused || err != nil && !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
