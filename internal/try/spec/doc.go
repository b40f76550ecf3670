// Package spec finds what a driver does against the Container Storage Interface specification, in the RPCs that it was
// seen to answer. It decides from the calls alone: no clock, no kernel, no API.
//
// What flows in are calls of package proxy in the order of their ends, what flows out are violations, each with the
// section of the specification that it breaks.
package spec
