package proxy

import (
	"encoding/json"
	"errors"
	"path"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Who made a call.
const (
	Kubernetes = "kubernetes" // the controllers and the node agent of the instance
	Bench      = "bench"      // the bench itself, for what Kubernetes does not ask
	Sanity     = "csi-sanity"
	Fault      = "fault" // the proxy: a request that was delivered again, or late
)

// Call is one RPC as the driver answered it.
type Call struct {
	Number   int // from 1, in the order in which the calls began
	From     string
	Service  string // "csi.v1.Controller"
	Method   string // "CreateVolume"
	Began    time.Time
	Took     time.Duration
	Code     codes.Code
	Message  string // of the status
	Details  int    // entries in the status's details
	Injected string // what the proxy did to the call, for a reader; empty: nothing
	Again    bool   // the same request a second time, after an OK answer to the first

	// Request and Response are nil when the method is not one of the specification. They hold secrets: only JSON is
	// for showing.
	Request, Response proto.Message
	// Broken says why the answer could not be decoded.
	Broken error
}

// Answered: the driver itself gave the answer. An RPC that the proxy cut short, or that found no driver, tells nothing of it.
func (c *Call) Answered() bool {
	return c.Injected == "" || c.Injected == againText || c.Injected == lateText
}

// JSON renders a message without its secrets; nil becomes null.
func JSON(m proto.Message) json.RawMessage {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	return json.RawMessage(protosanitizer.StripSecrets(m).String())
}

// Secrets are the values of m's secret fields.
func Secrets(m proto.Message) []string {
	if m == nil {
		return nil
	}
	var found []string
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if secret, _ := proto.GetExtension(f.Options(), csi.E_CsiSecret).(bool); secret && f.IsMap() {
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				found = append(found, v.String())
				return true
			})
		}
		return true
	})
	return found
}

// newCall decodes the request of the full method "/csi.v1.Controller/CreateVolume".
func newCall(from, full string, request []byte) *Call {
	c := &Call{From: from, Service: path.Base(path.Dir(full)), Method: path.Base(full), Began: time.Now()}
	if in, _, ok := messages(c.Service, c.Method); ok {
		c.Request = in
		_ = proto.Unmarshal(request, in)
	}
	return c
}

// answer notes what the driver said.
func (c *Call) answer(response []byte) {
	_, out, ok := messages(c.Service, c.Method)
	if !ok || c.Code != codes.OK {
		return
	}
	if err := proto.Unmarshal(response, out); err != nil {
		c.Broken = errors.New("the answer is no " + string(out.ProtoReflect().Descriptor().Name()))
		return
	}
	c.Response = out
}

// messages makes the empty request and response of a method of the specification.
func messages(service, method string) (in, out proto.Message, ok bool) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, nil, false
	}
	s, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil, nil, false
	}
	m := s.Methods().ByName(protoreflect.Name(method))
	if m == nil || m.IsStreamingServer() {
		return nil, nil, false
	}
	it, err1 := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	ot, err2 := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err1 != nil || err2 != nil {
		return nil, nil, false
	}
	return it.New().Interface(), ot.New().Interface(), true
}
