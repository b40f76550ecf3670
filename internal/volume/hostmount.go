package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
)

// HostMount is a volume at a path of the host.
type HostMount struct {
	Namespace string
	Name      string
	Path      string // absolute
	ReadOnly  bool
	// Over a directory that is not empty: what is in it is hidden while the volume is mounted.
	Over bool
}

// MountAt makes a volume appear at a path of the host, until UnmountAt. Mounted there already is success. When it fails,
// nothing is left.
func (s *Service) MountAt(ctx context.Context, h HostMount) error {
	if err := ValidateName(h.Name); err != nil {
		return err
	}
	path, err := s.checkPath(h.Path)
	if err != nil {
		return err
	}
	held, err := s.busy.Acquire(ctx, path, "mount of volume "+h.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	m, err := s.records.get(path)
	if err != nil {
		return err
	}
	fresh := m == nil
	switch {
	case fresh:
		m = &record{Path: path, Namespace: h.Namespace, Name: h.Name, ReadOnly: h.ReadOnly, Since: time.Now().UTC().Truncate(time.Second)}
		if err := checkDir(path, h.Over); err != nil {
			return err
		}
	case m.Namespace != h.Namespace || m.Name != h.Name:
		return refuse("%s is taken by volume %s/%s; unmount that first", path, m.Namespace, m.Name)
	case m.ReadOnly != h.ReadOnly:
		return refuse("volume %s is mounted at %s %s; unmount it first", h.Name, path, map[bool]string{true: "read-only", false: "writable"}[m.ReadOnly])
	}
	m.Leaving = false
	if err := s.records.write(m); err != nil {
		return err
	}
	source, err := s.Hold(ctx, m.Namespace, m.Name, m.caller())
	if err == nil {
		err = s.bind(m, source)
	}
	if err == nil || !fresh {
		return err
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	if _, left := s.leave(undo, m.Namespace, ClaimName(m.Name), m.caller().is); left != nil {
		// The next start finds a caller without a record, and takes it away.
		s.log.Warn("a mount that failed is not undone", "volume", m.Name, "path", path, "error", left)
	}
	return errors.Join(err, s.records.remove(path))
}

func (m *record) caller() Caller { return Caller{By: Host, ID: m.Path} }

// checkPath returns the path as the kernel shows it.
func (s *Service) checkPath(path string) (string, error) {
	if !filepath.IsAbs(path) || strings.ContainsAny(path, "\n\x00") {
		return "", refuse("%q is not an absolute path", path)
	}
	path = filepath.Clean(path)
	// What is there is followed; what is not will be made below it.
	have, rest := path, ""
	for {
		real, err := filepath.EvalSymlinks(have)
		if err == nil {
			path = filepath.Join(real, rest)
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if _, dangling := os.Lstat(have); dangling == nil {
			return "", refuse("%s is a symbolic link to nowhere", have)
		}
		rest, have = filepath.Join(filepath.Base(have), rest), filepath.Dir(have)
	}
	data := filepath.Dir(string(s.records))
	switch {
	case path == "/":
		return "", refuse("a volume cannot be mounted over /")
	case below(path, data), below(data, path):
		return "", refuse("%s is in the way of the data directory %s; choose another place", path, data)
	}
	return path, nil
}

func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// checkDir refuses a place at which a mount would hide something.
func checkDir(path string, over bool) error {
	is, err := mountpoint.Is(path)
	if err != nil {
		return err
	}
	if is {
		return refuse("something else is mounted at %s; unmount it, or choose another directory", path)
	}
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // will be made
	}
	if err != nil {
		return err
	}
	defer d.Close()
	some, err := d.Readdirnames(1)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return refuse("%s is not a directory", path)
	case len(some) > 0 && !over:
		return refuse("%s is not empty (%s); the volume would hide what is in it; choose another directory, or say --over", path, some[0])
	}
	return nil
}

// bind makes the volume at source appear at the record's path. It appears there whole, with its flags, or not at all.
func (s *Service) bind(m *record, source string) error {
	real, err := s.checkPath(m.Path)
	if err != nil {
		return err
	}
	if real != m.Path {
		return refuse("%s leads through a symbolic link to %s by now; unmount volume %s by its name, and mount it where it is meant to be", m.Path, real, m.Name)
	}
	shown, err := shownAt(source)
	if err != nil {
		return err
	}
	if shown == nil {
		return fmt.Errorf("nothing is mounted at %s", source)
	}
	at, err := shownAt(m.Path)
	if err != nil {
		return err
	}
	if at != nil && *at == *shown {
		return nil
	}
	if at != nil {
		return refuse("something else is mounted at %s; unmount it", m.Path)
	}
	m.Mounted, m.Boot = shown, thisBoot()
	if err := s.records.write(m); err != nil {
		return err
	}
	if err := boundary.Do("volume/make-mount-point", func() error { return os.MkdirAll(m.Path, 0o755) }); err != nil {
		return err
	}
	return boundary.Do("volume/bind", func() error { return mountpoint.Bind(source, m.Path, m.ReadOnly, nil) })
}

// UnmountAt takes a volume away from a path of the host; false says that none was there. One that is in use stays, and
// the error names its users.
func (s *Service) UnmountAt(ctx context.Context, path string) (bool, error) {
	path, err := s.checkPath(path)
	if err != nil {
		return false, err
	}
	return s.unmountAt(ctx, path)
}

// unmountAt is UnmountAt for the path that a record has, wherever that leads by now.
func (s *Service) unmountAt(ctx context.Context, path string) (bool, error) {
	held, err := s.busy.Acquire(ctx, path, "unmount")
	if err != nil {
		return false, err
	}
	defer held.Release()
	m, err := s.records.get(path)
	if m == nil || err != nil {
		return false, err
	}
	m.Leaving = true
	if err := s.records.write(m); err != nil {
		return false, err
	}
	if err := m.unbind(); err != nil {
		m.Leaving = false
		return false, errors.Join(err, s.records.write(m))
	}
	if err := s.release(ctx, m.Namespace, m.Name, m.caller().is); err != nil {
		return false, err
	}
	return true, s.records.remove(path)
}

// UnmountVolume takes a volume away from every path of the host at which it is. With force, every other caller is
// forgotten as well: those that a killed container engine left. It refuses while a container really uses the volume, or
// may be about to.
func (s *Service) UnmountVolume(ctx context.Context, namespace, name string, force bool) (unmounted int, err error) {
	key := namespace + "/" + ClaimName(name)
	if force {
		end, err := s.mounting.force(key, name)
		if err != nil {
			return 0, err
		}
		defer end()
	}
	v, err := s.Get(ctx, namespace, name)
	if err != nil {
		return 0, err
	}
	if force {
		if err := s.mayForget(v, key); err != nil {
			return 0, err
		}
	}
	all, err := s.records.all()
	if err != nil {
		return 0, err
	}
	for _, m := range all {
		if m.Namespace != namespace || m.Name != name {
			continue
		}
		was, err := s.unmountAt(ctx, m.Path)
		if err != nil {
			return unmounted, err
		}
		if was {
			unmounted++
		}
	}
	if !force {
		return unmounted, nil
	}
	if err := s.release(ctx, namespace, name, func(Caller) bool { return true }); err != nil {
		return unmounted, err
	}
	s.mounting.releasedAll(key)
	return max(unmounted, len(v.Callers)), nil
}

// mayForget refuses to forget who really has the volume, or may have it in a moment.
func (s *Service) mayForget(v Volume, key string) error {
	if v.Path != "" {
		users, err := s.containersWith(v.Path)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return refuse("volume %s is in use by process %s; end it first", v.Name, strings.Join(users, ", "))
		}
	}
	if left := s.mounting.starting(key); left > 0 {
		return refuse("a container engine has just mounted volume %s, and its container may be starting; try again in %s", v.Name, left.Round(time.Second)+time.Second)
	}
	return nil
}

// Run brings back what was mounted on the host, finishes what a crash interrupted, and forgets callers that cannot be
// there any more. It returns when everything is mounted, or ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if err := os.MkdirAll(string(s.records), 0o700); err != nil {
		return err
	}
	all, err := s.records.all()
	if err != nil {
		s.log.Error("records of mounts on the host", "error", err)
	}
	if err == nil { // else a caller of the unreadable record would be taken for one of nobody
		s.forget(ctx)
	}
	s.mountAll(ctx, all)
	return nil
}

func (s *Service) mountAll(ctx context.Context, all []*record) {
	var work sync.WaitGroup
	for _, m := range all {
		work.Go(func() {
			if err := s.resume(ctx, m); err != nil && ctx.Err() == nil {
				s.log.Error("mount on the host", "volume", m.Namespace+"/"+m.Name, "path", m.Path, "error", err)
			}
		})
	}
	work.Wait()
}

// TakeDown unmounts what is mounted on the host from this instance, so that it can go down. While a process uses one of
// the mounts, none is taken away.
func (s *Service) TakeDown(ctx context.Context) error {
	all, err := s.records.all()
	if err != nil {
		return err
	}
	for _, m := range all {
		if users := mountpoint.Users(m.Path); len(users) > 0 && m.Mounted != nil {
			return fmt.Errorf("%s (volume %s) is in use by process %s", m.Path, m.Name, strings.Join(users, ", "))
		}
	}
	if err := s.noContainers(ctx); err != nil {
		return err
	}
	var errs []error
	for _, m := range all {
		errs = append(errs, s.takeDown(ctx, m.Path))
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, s.Restore(ctx))
	}
	return nil
}

func (s *Service) takeDown(ctx context.Context, path string) error {
	held, err := s.busy.Acquire(ctx, path, "unmount for berth down")
	if err != nil {
		return err
	}
	defer held.Release()
	m, err := s.records.get(path)
	if m == nil || err != nil {
		return err
	}
	return s.records.takeDown(m)
}

// restoreWithin bounds a Restore.
const restoreWithin = 10 * time.Second

// Restore mounts again what a TakeDown has unmounted, when the instance stays.
func (s *Service) Restore(ctx context.Context) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreWithin)
	defer cancel()
	all, err := s.records.all()
	s.mountAll(limited, all)
	return err
}

// forget takes away the callers of a former boot of the machine, whose containers have ended with it, and those for a
// path of the host of which nobody knows.
func (s *Service) forget(ctx context.Context) {
	pods, err := s.client.CoreV1().Pods(corev1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: holderLabel + "=" + holderValue})
	if err != nil {
		s.log.Error("list mounts", "error", err)
		return
	}
	ended := func(c Caller) bool { return c.By == Engine && c.Boot != "" && c.Boot != s.boot }
	for i := range pods.Items {
		p := &pods.Items[i]
		_, err := s.leave(ctx, p.Namespace, p.Name, ended)
		for _, c := range callersOf(p) {
			if c.By == Host {
				err = errors.Join(err, s.forgetPath(ctx, p, c))
			}
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("forget callers of a former boot", "pod", p.Namespace+"/"+p.Name, "error", err)
		}
	}
}

// forgetPath takes away a caller for a path of the host that has no record. A mount writes its record first, so that one that begins
// meanwhile is not mistaken for a stranger, nor waited for.
func (s *Service) forgetPath(ctx context.Context, pod *corev1.Pod, c Caller) error {
	if m, err := s.records.get(c.ID); m != nil || err != nil {
		return err
	}
	held, err := s.busy.Acquire(ctx, c.ID, "forgetting a mount of which nobody knows")
	if err != nil {
		return err
	}
	defer held.Release()
	if m, err := s.records.get(c.ID); m != nil || err != nil {
		return err
	}
	_, err = s.leave(ctx, pod.Namespace, pod.Name, c.is)
	return err
}

// resume mounts what a record wants, however long its volume takes, or finishes its unmount.
func (s *Service) resume(ctx context.Context, m *record) error {
	if m.Leaving {
		_, err := s.unmountAt(ctx, m.Path)
		return err
	}
	end, err := s.mounting.begin(ctx, m.Namespace+"/"+ClaimName(m.Name))
	if err != nil {
		return err
	}
	defer end("")
	c, err := s.claim(ctx, m.Namespace, m.Name)
	if err != nil {
		return err
	}
	pod, _, err := s.join(ctx, c, m.caller())
	if err != nil {
		return err
	}
	uid, source := pod.UID, ""
	woken, endWait := s.waiting.add(uid, reasonAfter)
	defer endWait()
	_, err = await(ctx, s.client.CoreV1().Pods(m.Namespace), pod.Name, pod, woken, func(p *corev1.Pod) (is bool, err error) {
		if p == nil || p.UID != uid || p.DeletionTimestamp != nil {
			return false, errors.New("its holder pod was deleted")
		}
		source, is = s.where(p)
		return is, nil
	})
	if err != nil {
		return err
	}
	held, err := s.busy.Acquire(ctx, m.Path, "mount of volume "+m.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	now, err := s.records.get(m.Path)
	if now == nil && err == nil { // unmounted meanwhile, perhaps before it counted here
		_, err = s.leave(ctx, m.Namespace, ClaimName(m.Name), m.caller().is)
	}
	if now == nil || now.Leaving || err != nil {
		return err
	}
	return s.bind(now, source)
}
