// Package proxy stands on a unix socket between whoever calls a CSI driver and the driver. It passes every RPC on byte
// by byte, also those that it does not know, records it, and can spoil it on demand (fault.go).
//
// What flows in are RPCs and faults, what flows out are Calls. It knows the messages of the CSI specification by their
// descriptors and nothing of volumes.
package proxy
