package csi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/version"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// DefaultRPCTimeout bounds one call to a driver (upstream's csiTimeout).
const DefaultRPCTimeout = 2 * time.Minute

// DriversOptions are all optional.
type DriversOptions struct {
	// Timeout of one call; DefaultRPCTimeout when zero.
	Timeout time.Duration
	// Journal is a file that remembers the endpoints, for a teardown when no registration runs any more.
	Journal string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Drivers are the CSI drivers that are registered on this node, by name. The node's plugin registration fills it.
type Drivers struct {
	timeout time.Duration
	journal string
	log     *slog.Logger
	seconds *prometheus.HistogramVec

	mu      sync.Mutex
	drivers map[string]*driver
	known   map[string]string // name → last known endpoint, also of drivers that have gone
	notify  []func(name string)
}

// NewDrivers makes an empty table.
func NewDrivers(o DriversOptions) *Drivers {
	d := &Drivers{
		timeout: o.Timeout,
		journal: o.Journal,
		log:     o.Log,
		drivers: map[string]*driver{},
		known:   map[string]string{},
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "csi_operations_seconds",
			Help:    "Duration of calls to CSI drivers, in seconds.",
			Buckets: []float64{.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
		}, []string{"driver_name", "method_name", "grpc_status_code", "migrated"}),
	}
	if d.timeout <= 0 {
		d.timeout = DefaultRPCTimeout
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(d.seconds)
	}
	if d.journal != "" {
		if known, err := readEndpoints(d.journal); err == nil {
			d.known = known
		}
	}
	return d
}

// Register adds a driver, or replaces it: a driver that registers again may be another version with other capabilities.
// versions are those of the CSI spec that it speaks; one of them must be 1.x (none given counts as 1.0).
func (d *Drivers) Register(name, endpoint string, versions ...string) error {
	if name == "" || endpoint == "" {
		return fmt.Errorf("register driver %q at %q: both name and endpoint are needed", name, endpoint)
	}
	if !speaksV1(versions) {
		return fmt.Errorf("register driver %s: it speaks CSI %s, and 1.x is needed", name, strings.Join(versions, ", "))
	}
	n, err := d.dial(name, endpoint)
	if err != nil {
		return fmt.Errorf("register driver %s at %s: %w", name, endpoint, err)
	}
	d.mu.Lock()
	old := d.drivers[name]
	d.drivers[name] = n
	changed := d.known[name] != endpoint
	d.known[name] = endpoint
	known := maps.Clone(d.known)
	notify := slices.Clone(d.notify)
	d.mu.Unlock()
	if old != nil {
		old.retire()
	}
	for _, f := range notify {
		f(name)
	}
	if changed && d.journal != "" {
		// Only the offline teardown reads it: a driver serves as well without.
		if err := writeEndpoints(d.journal, known); err != nil {
			d.log.Warn("the driver's endpoint can't be noted; `berth down` without the API will use plain unmounts",
				"driver", name, "err", err)
		}
	}
	return nil
}

// notifyRegistered has f called after each registration.
func (d *Drivers) notifyRegistered(f func(name string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notify = append(d.notify, f)
}

// Unregister removes a driver. Calls that are under way are let to finish.
func (d *Drivers) Unregister(name string) {
	d.mu.Lock()
	old := d.drivers[name]
	delete(d.drivers, name)
	d.mu.Unlock()
	if old != nil {
		old.retire()
	}
}

// RegisterKnown registers the drivers that the journal remembers, for a teardown when no registration runs.
func (d *Drivers) RegisterKnown() error {
	d.mu.Lock()
	known := maps.Clone(d.known)
	d.mu.Unlock()
	var errs []error
	for name, endpoint := range known {
		if _, err := d.get(name); err == nil {
			continue
		}
		errs = append(errs, d.Register(name, endpoint))
	}
	return errors.Join(errs...)
}

// Close ends all connections.
func (d *Drivers) Close() {
	for _, name := range d.Names() {
		d.Unregister(name)
	}
}

// Names lists the registered drivers.
func (d *Drivers) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.drivers))
}

func (d *Drivers) get(name string) (*driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, ok := d.drivers[name]; ok {
		return n, nil
	}
	if endpoint := d.known[name]; endpoint != "" {
		return nil, fmt.Errorf("driver %s is %w any more: it was at %s; is its node plugin running?", name, plugin.ErrDriverMissing, endpoint)
	}
	have := slices.Sorted(maps.Keys(d.drivers))
	if len(have) == 0 {
		return nil, fmt.Errorf("driver %s is %w: no CSI driver is; is its node plugin running?", name, plugin.ErrDriverMissing)
	}
	return nil, fmt.Errorf("driver %s is %w: only %s; is its name right, and is its node plugin running?",
		name, plugin.ErrDriverMissing, strings.Join(have, ", "))
}

// speaksV1 as upstream's highestSupportedVersion, which also refuses 0.x only.
func speaksV1(versions []string) bool {
	for _, s := range versions {
		if v, err := version.ParseGeneric(s); err == nil && v.Major() == 1 {
			return true
		}
	}
	return len(versions) == 0
}

// dial makes a connection that connects on the first call and again after a loss, quickly: a driver's pod that is
// replaced is back within a second. It has no keep-alive and no proxy, and it never ends the process.
func (d *Drivers) dial(name, endpoint string) (*driver, error) {
	socket := strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix://"), "unix:")
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, err
	}
	return &driver{name: name, timeout: d.timeout, conn: conn, node: csipb.NewNodeClient(conn), seconds: d.seconds}, nil
}

func readEndpoints(file string) (map[string]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	known := map[string]string{}
	if err := json.Unmarshal(data, &known); err != nil || known == nil {
		return nil, errors.Join(errors.New("not a map of endpoints"), err)
	}
	return known, nil
}

func writeEndpoints(file string, known map[string]string) error {
	data, err := json.MarshalIndent(known, "", "  ")
	if err != nil {
		return err
	}
	return boundary.Do("csi/save-endpoints", func() error {
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			return err
		}
		tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
		if err != nil {
			return err
		}
		_, err = tmp.Write(data)
		if err = errors.Join(err, tmp.Close()); err == nil {
			err = os.Rename(tmp.Name(), file)
		}
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
		return err
	})
}
