package deploy

import (
	"os"
	"strings"
	"testing"

	yamlv3 "go.yaml.in/yaml/v3"
)

// TestValuesAreDocumented: each value has a comment of its own, or stands in a group that has one.
func TestValuesAreDocumented(t *testing.T) {
	text, err := os.ReadFile(chartDir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var root yamlv3.Node
	if err := yamlv3.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	documented(t, "", root.Content[0], false)
}

// documented walks the values. A group's comment is enough for what is in it; a value at the top needs its own.
func documented(t *testing.T, path string, n *yamlv3.Node, covered bool) {
	switch n.Kind {
	case yamlv3.MappingNode:
		previous := covered
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			here := strings.TrimPrefix(path+"."+key.Value, ".")
			own := key.HeadComment != "" || key.LineComment != "" || value.LineComment != ""
			if !own && !previous && value.Kind != yamlv3.MappingNode {
				t.Errorf("values.yaml:%d: %s has no comment", key.Line, here)
			}
			// A comment covers the lines that follow it without another.
			previous = own || previous
			documented(t, here, value, own || covered)
		}
	case yamlv3.SequenceNode:
		for _, item := range n.Content {
			documented(t, path+"[]", item, covered || item.HeadComment != "")
		}
	}
}
