package main

import (
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// A driver with a package of ours in it would prove nothing about others.
func TestNothingOfBerthIsInIt(t *testing.T) {
	imports := 0
	for _, file := range []string{"main.go", "snapshot.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		imports += len(f.Imports)
		for _, i := range f.Imports {
			if strings.Contains(i.Path.Value, "berth.io") {
				t.Errorf("%s imports %s", file, i.Path.Value)
			}
		}
	}
	if imports < 20 {
		t.Fatalf("only %d imports were read", imports)
	}
}
