package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Proxy passes on to the sockets of one driver.
type Proxy struct {
	// Seen is called with each call when it has ended; never two at once.
	seen func(*Call)

	mu       sync.Mutex
	number   int
	faults   []*Rule
	servers  []*grpc.Server
	upstream []*Upstream
	late     sync.WaitGroup
	watch    sync.Mutex // held around seen
}

// New makes a proxy that tells seen of each call.
func New(seen func(*Call)) *Proxy { return &Proxy{seen: seen} }

// Upstream is a socket of the driver.
type Upstream struct {
	path string

	mu   sync.Mutex
	conn *grpc.ClientConn
}

// Upstream adds a socket of the driver. It is connected to with the first RPC.
func (p *Proxy) Upstream(path string) (*Upstream, error) {
	u := &Upstream{path: path}
	conn, err := u.dial()
	if err != nil {
		return nil, err
	}
	u.conn = conn
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstream = append(p.upstream, u)
	return u, nil
}

// dial connects again quickly: a driver that was killed is back within milliseconds.
func (u *Upstream) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+u.path,
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", u.path)
		}))
}

// cut breaks the connection under every RPC on it, as the end of either side would, and opens another.
func (u *Upstream) cut() {
	conn, err := u.dial()
	if err != nil {
		return
	}
	u.mu.Lock()
	old := u.conn
	u.conn = conn
	u.mu.Unlock()
	_ = old.Close()
}

func (u *Upstream) current() *grpc.ClientConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.conn
}

// Serve listens on socket for the calls of one caller, and passes them to u.
func (p *Proxy) Serve(socket, from string, u *Upstream) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.MaxRecvMsgSize(64<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return p.handle(stream, from, u) }))
	p.mu.Lock()
	p.servers = append(p.servers, s)
	p.mu.Unlock()
	go func() { _ = s.Serve(l) }()
	return nil
}

// Close ends all connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	servers, upstream := p.servers, p.upstream
	p.mu.Unlock()
	for _, s := range servers {
		s.Stop()
	}
	p.late.Wait()
	for _, u := range upstream {
		_ = u.current().Close()
	}
}

func (p *Proxy) handle(stream grpc.ServerStream, from string, u *Upstream) error {
	full, ok := grpc.MethodFromServerStream(stream)
	if !ok {
		return status.Error(codes.Internal, "berth try: a stream without a method")
	}
	request := frame{}
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	ctx := outgoing(stream.Context())
	if streams(full) {
		return p.stream(ctx, stream, from, full, &request, u)
	}
	rule := p.take(from, full, request)
	response, err := rule.play(ctx, p, from, full, request, u)
	if err != nil {
		return err
	}
	return stream.SendMsg(&response)
}

// outgoing passes the caller's metadata on; the deadline is the context's.
func outgoing(ctx context.Context) context.Context {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		md = md.Copy()
		delete(md, ":authority")
		delete(md, "content-type")
		delete(md, "user-agent")
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	return ctx
}

// forward asks the driver and records the call.
func (p *Proxy) forward(ctx context.Context, from, injected, full string, request frame, u *Upstream) (frame, error) {
	c := p.begin(from, full, request)
	response := frame{}
	err := u.current().Invoke(ctx, full, &request, &response)
	c.Injected, c.Again = injected, injected == againText
	p.end(c, response, err)
	return response, err
}

// begin numbers a call.
func (p *Proxy) begin(from, full string, request frame) *Call {
	c := newCall(from, full, request)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	c.Number = p.number
	return c
}

func (p *Proxy) end(c *Call, response frame, err error) {
	c.Took = time.Since(c.Began)
	s := status.Convert(err)
	c.Code, c.Message, c.Details = s.Code(), s.Message(), len(s.Proto().GetDetails())
	if s.Code() == codes.Unavailable && c.Injected == "" {
		c.Injected = goneText // gRPC's own words, most likely: the driver could not be reached
	}
	c.answer(response)
	p.watch.Lock()
	defer p.watch.Unlock()
	p.seen(c)
}

// stream passes a server's stream on; only its end is recorded.
func (p *Proxy) stream(ctx context.Context, down grpc.ServerStream, from, full string, request *frame, u *Upstream) error {
	c := p.begin(from, full, *request)
	err := func() error {
		up, err := u.current().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, full)
		if err != nil {
			return err
		}
		if err := errors.Join(up.SendMsg(request), up.CloseSend()); err != nil {
			return err
		}
		for {
			m := frame{}
			if err := up.RecvMsg(&m); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := down.SendMsg(&m); err != nil {
				return err
			}
		}
	}()
	p.end(c, nil, err)
	return err
}

// streams: the two RPCs of the specification that answer with a stream.
func streams(full string) bool {
	return full == "/csi.v1.SnapshotMetadata/GetMetadataAllocated" || full == "/csi.v1.SnapshotMetadata/GetMetadataDelta"
}

// frame is a message that nobody has looked into.
type frame []byte

// raw is gRPC's codec for frames. Its name keeps the content type that drivers expect.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("berth try: cannot pass on %T", v)
	}
	return *f, nil
}

func (raw) Unmarshal(data []byte, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("berth try: cannot pass on %T", v)
	}
	*f = append((*f)[:0], data...)
	return nil
}
