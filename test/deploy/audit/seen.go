package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"berth.io/berth/test/deploy/roles"
)

// event is what is needed of audit.k8s.io/v1 Event, one on each line of the log.
type event struct {
	Stage string `json:"stage"`
	Verb  string `json:"verb"`
	User  struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef *struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		APIGroup    string `json:"apiGroup"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"responseStatus"`
	Annotations map[string]string `json:"annotations"`
}

// request is what a service account asked for.
type request struct {
	account, namespace string // the namespace asked in
	grant              roles.Grant
}

// seen are the requests of a log.
type seen struct {
	prefix  string
	events  int
	allowed map[request]int
	refused map[request]string // the API server's words
}

func newSeen(namespace string) *seen {
	return &seen{prefix: "system:serviceaccount:" + namespace + ":", allowed: map[request]int{}, refused: map[request]string{}}
}

// read takes a log. A last line that was cut short, by the end of the API server, is left out.
func (s *seen) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		s.take(&e)
	}
}

func (s *seen) take(e *event) {
	account, ours := strings.CutPrefix(e.User.Username, s.prefix)
	if !ours || e.ObjectRef == nil || e.Stage == "RequestReceived" {
		return
	}
	// What every account may ask: which kinds there are, and what it may do itself.
	if e.ObjectRef.APIGroup == "authorization.k8s.io" && strings.HasPrefix(e.ObjectRef.Resource, "self") {
		return
	}
	s.events++
	resource := e.ObjectRef.Resource
	if e.ObjectRef.Subresource != "" {
		resource += "/" + e.ObjectRef.Subresource
	}
	r := request{account, e.ObjectRef.Namespace, roles.Grant{Verb: e.Verb, Group: e.ObjectRef.APIGroup, Resource: resource, Name: e.ObjectRef.Name}}
	if e.ResponseStatus.Code == http.StatusForbidden && e.Annotations["authorization.k8s.io/decision"] != "allow" {
		s.refused[r] = e.ResponseStatus.Message
		return
	}
	s.allowed[r]++
	if e.Verb == "patch" && e.ResponseStatus.Code == http.StatusCreated { // what is applied by the server and made by that needs both
		r.grant.Verb = "create"
		s.allowed[r]++
	}
}

// compare says what the table grants and nobody used, and what was refused or done without it.
func (s *seen) compare(all []roles.Role, namespace string) []string {
	var out []string
	covered := map[request]bool{}
	for _, role := range all {
		within := ""
		if role.Scope == roles.Namespaced {
			if within = role.Namespace; within == "" {
				within = namespace
			}
		}
		for g, why := range role.Grants() {
			used := false
			for r := range s.allowed {
				if r.account != role.Account {
					continue
				}
				if covers(g, within, r) {
					used, covered[r] = true, true
				}
				used = used || backs(g, within, r)
			}
			if !used {
				out = append(out, fmt.Sprintf("unused: %s of %s may %s (%s)", role.Name, role.Account, g, why))
			}
		}
	}
	for r := range s.allowed {
		if !covered[r] {
			out = append(out, fmt.Sprintf("not in the table: %s did %s in namespace %q", r.account, r.grant, r.namespace))
		}
	}
	for r, message := range s.refused {
		out = append(out, fmt.Sprintf("refused: %s wanted %s in namespace %q: %s", r.account, r.grant, r.namespace, message))
	}
	slices.Sort(out)
	return out
}

// covers says whether a grant, in a namespace or everywhere, is for a request.
func covers(g roles.Grant, within string, r request) bool {
	return g.Verb == r.grant.Verb && g.Group == r.grant.Group && g.Resource == r.grant.Resource &&
		(g.Name == "" || g.Name == r.grant.Name) && (within == "" || within == r.namespace)
}

// backs says whether a grant of list stands behind a watch: an informer begins with a watch that tells of all that is there, and lists where
// the API server does not stream that (WatchList), or refuses to for a moment.
func backs(g roles.Grant, within string, r request) bool {
	if g.Verb != "list" {
		return false
	}
	g.Verb = "watch"
	return covers(g, within, r)
}
