package mountpoint

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestWhatAnErrorSays: a path that is not there is no mount point; a filesystem that can't answer is one, so that it gets unmounted;
// all else is not known.
func TestWhatAnErrorSays(t *testing.T) {
	for err, want := range map[unix.Errno]struct{ mounted, known bool }{
		unix.ENOENT:       {false, true},
		unix.ENOTDIR:      {false, true},
		unix.EIO:          {true, true},
		unix.ESTALE:       {true, true},
		unix.ENOTCONN:     {true, true},
		unix.EUCLEAN:      {true, true},
		unix.EHOSTDOWN:    {true, true},
		unix.EHOSTUNREACH: {true, true},
		unix.ETIMEDOUT:    {true, true},
		unix.EAGAIN:       {true, true},
		unix.EACCES:       {false, false},
		unix.ELOOP:        {false, false},
		unix.ENOMEM:       {false, false},
	} {
		if mounted, known := judge(err); mounted != want.mounted || known != want.known {
			t.Errorf("%v: mounted %v, known %v", err, mounted, known)
		}
	}
}
