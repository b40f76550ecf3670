package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
)

// keepSocket serves on a new socket when somebody has removed the driver's, until ctx ends: connections that are open would go on, and who
// comes new, as a kubelet does for each call, would find nothing. What goes wrong is logged; the socket that is there is served on.
func (d *Driver) keepSocket(ctx context.Context, server *grpc.Server) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		d.o.Log.Error("the driver's socket is not watched", "socket", d.o.SocketPath, "err", err)
		return
	}
	defer w.Close()
	dir := filepath.Dir(d.o.SocketPath)
	if err := w.Add(dir); err != nil {
		d.o.Log.Error("the driver's socket is not watched", "socket", d.o.SocketPath, "err", err)
		return
	}
	for {
		// Looked at once more than events tell: it may have gone before the watch began.
		if _, err := os.Lstat(d.o.SocketPath); errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			listener, err := Listen(d.o.SocketPath)
			if err != nil {
				d.o.Log.Error("the driver's socket was removed, and there is no other", "socket", d.o.SocketPath, "err", err)
				return
			}
			d.o.Log.Warn("somebody has removed the driver's socket; there is a new one", "socket", d.o.SocketPath)
			go func() { _ = server.Serve(listener) }() // ends, and closes it, with the server
			if err := w.Add(dir); err != nil {         // the directory may be another one
				d.o.Log.Error("the driver's socket is not watched", "socket", d.o.SocketPath, "err", err)
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case _, ok := <-w.Events:
			if !ok {
				return
			}
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			d.o.Log.Warn("watch the driver's socket", "socket", d.o.SocketPath, "err", err)
		}
	}
}
