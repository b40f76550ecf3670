package main

import (
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// A driver with a package of ours in it would prove nothing about others.
func TestNothingOfBerthIsInIt(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "main.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Imports) < 10 {
		t.Fatalf("only %d imports were read", len(f.Imports))
	}
	for _, i := range f.Imports {
		if strings.Contains(i.Path.Value, "berth.io") {
			t.Errorf("imports %s", i.Path.Value)
		}
	}
}
