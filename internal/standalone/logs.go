package standalone

import (
	"errors"
	"io"
	"log/slog"

	"gopkg.in/natefinch/lumberjack.v2"

	"berth.io/berth/internal/apiclient"
)

// logs are the files in DIR/log; the terminal is for the person in front of it.
type logs struct {
	berth     *slog.Logger
	apiserver io.Writer
	files     []io.Closer
}

func openLogs(dir DataDir, level slog.Level) (*logs, error) {
	own := &lumberjack.Logger{Filename: dir.Log("berth.log"), MaxSize: 20, MaxBackups: 3}
	api := &lumberjack.Logger{Filename: dir.Log("apiserver.log"), MaxSize: 20, MaxBackups: 3}
	log := slog.New(slog.NewTextHandler(own, &slog.HandlerOptions{Level: level}))
	apiclient.LogTo(log)
	return &logs{berth: log, apiserver: api, files: []io.Closer{own, api}}, nil
}

func (l *logs) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
