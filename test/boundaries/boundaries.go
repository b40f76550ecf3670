// Package boundaries derives from the source the places at which the kill test kills, and finds effects that stand
// outside any of them.
package boundaries

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Boundary is one boundary.Do of the source.
type Boundary struct {
	Name     string // "<room>/<effect>"
	Position string // file:line
}

// Bare is a call with an effect that outlives the process, outside any boundary.
type Bare struct {
	Call     string
	Position string
}

// HeldByCaller in a function's doc comment says that each of its callers holds a boundary around the call.
const HeldByCaller = "boundary: held by the caller"

// apiWrites are client-go's verbs that change an object; they count when the first argument is a context.
var apiWrites = set("Create", "Update", "UpdateStatus", "UpdateResize", "UpdateEphemeralContainers", "Patch", "Delete", "DeleteCollection",
	"Apply", "ApplyStatus", "Bind", "EvictV1")

// rpcs are the calls of the CSI specification that change something.
var rpcs = set("CreateVolume", "DeleteVolume", "ControllerPublishVolume", "ControllerUnpublishVolume", "ControllerExpandVolume",
	"ControllerModifyVolume", "CreateSnapshot", "DeleteSnapshot", "CreateVolumeGroupSnapshot", "DeleteVolumeGroupSnapshot",
	"NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeExpandVolume")

// kernel are functions by package that change kernel objects or make files durable.
var kernel = map[string]map[string]bool{
	"unix":    set("Mount", "Unmount", "MoveMount", "Fallocate", "IoctlLoopConfigure", "IoctlFileClone", "IoctlFileCloneRange", "Renameat2"),
	"syscall": set("Mount", "Unmount", "Fallocate"),
	"os":      set("Rename"),
	"durable": set("Replace"),
}

// notRooms hold no step of a journey: the boundary mechanism itself, and what only reads, prints or logs.
var notRooms = []string{"internal/boundary/"}

func set(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Scan reads the non-test Go files below root/internal.
func Scan(root string) (found []Boundary, bare []Bare, err error) {
	fset := token.NewFileSet()
	err = filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, p := range notRooms {
			if strings.HasPrefix(rel, p) {
				return nil
			}
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := &scanner{fset: fset, file: rel}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Doc != nil && strings.Contains(strings.ReplaceAll(fn.Doc.Text(), "\n", " "), HeldByCaller) {
				s.inside++
				ast.Walk(s, decl)
				s.inside--
				continue
			}
			ast.Walk(s, decl)
		}
		found, bare = append(found, s.found...), append(bare, s.bare...)
		return nil
	})
	sort.Slice(found, func(i, k int) bool { return found[i].Name < found[k].Name })
	return found, bare, err
}

// scanner walks one file; inside counts the boundaries around the node.
type scanner struct {
	fset   *token.FileSet
	file   string
	inside int
	found  []Boundary
	bare   []Bare
}

func (s *scanner) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.file, s.fset.Position(n.Pos()).Line)
}

// Visit implements ast.Visitor.
func (s *scanner) Visit(n ast.Node) ast.Visitor {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return s
	}
	if isSelector(call.Fun, "boundary", "Do") && len(call.Args) == 2 {
		name := ""
		if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			name, _ = strconv.Unquote(lit.Value)
		}
		s.found = append(s.found, Boundary{Name: name, Position: s.at(call)})
		s.inside++
		ast.Walk(s, call.Args[1])
		s.inside--
		return nil
	}
	if what, effect := effect(call); effect && s.inside == 0 {
		s.bare = append(s.bare, Bare{Call: what, Position: s.at(call)})
	}
	return s
}

func isSelector(e ast.Expr, pkg, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == pkg
}

// effect says whether call changes something that outlives the process.
func effect(call *ast.CallExpr) (string, bool) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	name := sel.Sel.Name
	if id, ok := sel.X.(*ast.Ident); ok && kernel[id.Name][name] {
		return id.Name + "." + name, true
	}
	if len(call.Args) < 2 || !isContext(call.Args[0]) {
		return "", false
	}
	// client.CoreV1().Pods(ns).Create(ctx, …): the receiver is itself a call, or a variable that holds one.
	if apiWrites[name] {
		of, chained := sel.X.(*ast.CallExpr)
		return "API " + name, chained && !asks(of)
	}
	return "RPC " + name, rpcs[name]
}

// questions are the resources whose creation leaves nothing: the answer is all there is.
var questions = set("TokenReviews", "SubjectAccessReviews", "LocalSubjectAccessReviews", "SelfSubjectReviews", "SelfSubjectAccessReviews")

func asks(of *ast.CallExpr) bool {
	sel, ok := of.Fun.(*ast.SelectorExpr)
	return ok && questions[sel.Sel.Name]
}

// isContext takes the habit of the tree for the type: contexts are called ctx, or end in Ctx, or are made on the spot.
func isContext(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && (id.Name == "ctx" || strings.HasSuffix(id.Name, "Ctx"))
}
