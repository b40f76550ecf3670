// Package deploy tests what deploy/ has: the chart renders, its output is what the API takes, its roles are those of roles.yaml, its arguments
// are flags of the programs, and deploy/kubernetes is the chart. It is a module of its own, so that the project does not depend on Helm.
package deploy
