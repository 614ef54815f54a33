package certificate

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge lets certmagic, which knows zap, write to our log. Once ended says so, what it calls errors are requests that were cut off by the end.
func bridge(log *slog.Logger, ended func() bool) *zap.Logger {
	return zap.New(&core{log: log, ended: ended})
}

// core is the half of zap that writes.
type core struct {
	log    *slog.Logger
	ended  func() bool
	fields []zapcore.Field
}

// level lowers what certmagic finds worth telling: each of its steps.
func (c *core) level(l zapcore.Level) slog.Level {
	switch {
	case c.ended():
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (c *core) Enabled(l zapcore.Level) bool { return c.log.Enabled(context.Background(), c.level(l)) }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{log: c.log, ended: c.ended, fields: slices.Concat(c.fields, fields)}
}

func (c *core) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

// Write bounds each field: an authority's words are in them.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range slices.Concat(c.fields, fields) {
		f.AddTo(enc)
	}
	attrs := []slog.Attr{slog.String("said", e.Message)}
	for _, key := range slices.Sorted(maps.Keys(enc.Fields)) {
		attrs = append(attrs, slog.String(key, cut(fmt.Sprint(enc.Fields[key]))))
	}
	c.log.LogAttrs(context.Background(), c.level(e.Level), "acme", attrs...)
	return nil
}

func (c *core) Sync() error { return nil }
