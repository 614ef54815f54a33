package store

import (
	"context"
	"embed"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/cofferdam/cofferdam/internal/fault"
)

//go:embed migrations
var migrations embed.FS

// migrate brings the schema up to date. Where several processes start at once one of them does it and the others wait.
func (db *DB) migrate(ctx context.Context) error {
	if db.lock != "" {
		release, err := holdLock(ctx, db.lock)
		if err != nil {
			return db.fail(err, "wait for the turn to change the schema")
		}
		defer release()
	}
	tree, err := fs.Sub(migrations, "migrations/"+db.dialect.name)
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{goose.WithSlog(quiet()), goose.WithDisableGlobalRegistry(true), goose.WithTableName("schema_version")}
	if db.dialect.postgres {
		one, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return err
		}
		options = append(options, goose.WithSessionLocker(one))
	}
	provider, err := goose.NewProvider(db.dialect.goose, db.writer, tree, options...)
	if err != nil {
		return db.fail(err, "prepare the migrations")
	}
	have, known, err := provider.GetVersions(ctx)
	if err != nil {
		return db.fail(err, "read the schema's version")
	}
	if have > known {
		return fault.New(fault.Unsupported, "the database was written by a newer version of Cofferdam: its schema is %d, this program knows up to %d", have, known).
			WithHint("start the newer version, or restore a backup from before the upgrade")
	}
	if _, err := provider.Up(ctx); err != nil {
		return db.fail(err, "bring the schema up to date")
	}
	return nil
}
