-- +goose Up

-- Times are microseconds since 1970 in UTC, 0 for none.

CREATE TABLE objects (
    kind    TEXT NOT NULL,
    id      TEXT NOT NULL,
    tenant  TEXT NOT NULL,
    name    TEXT NOT NULL,
    folded  TEXT NOT NULL, -- name in lower case, to search and sort by
    parent  TEXT NOT NULL,
    state   TEXT NOT NULL,
    version INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    data    TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;

CREATE UNIQUE INDEX objects_name ON objects (kind, tenant, name) WHERE name <> '';
CREATE INDEX objects_newest ON objects (kind, tenant, created, id, folded);
CREATE INDEX objects_state ON objects (kind, tenant, state, created, id, folded);
CREATE INDEX objects_folded ON objects (kind, tenant, folded, id);
CREATE INDEX objects_state_folded ON objects (kind, tenant, state, folded, id);
-- For the service itself, which looks at all tenants.
CREATE INDEX objects_any ON objects (kind, created, id);
CREATE INDEX objects_any_state ON objects (kind, state, created, id);
-- The identifier of a parent says its tenant already.
CREATE INDEX objects_parent ON objects (kind, parent, created, id, tenant) WHERE parent <> '';
CREATE INDEX objects_parent_state ON objects (kind, parent, state, created, id, tenant) WHERE parent <> '';

CREATE TABLE proofs (
    hash    BLOB NOT NULL PRIMARY KEY,
    kind    TEXT NOT NULL,
    id      TEXT NOT NULL,
    tenant  TEXT NOT NULL,
    subject TEXT NOT NULL,
    data    TEXT NOT NULL,
    created INTEGER NOT NULL,
    seen    INTEGER NOT NULL,
    expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX proofs_subject ON proofs (kind, tenant, subject, id);
CREATE INDEX proofs_expires ON proofs (expires);

CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant  TEXT NOT NULL,
    type    TEXT NOT NULL,
    subject TEXT NOT NULL,
    agent   TEXT NOT NULL,
    state   TEXT NOT NULL,
    time    INTEGER NOT NULL
) STRICT;

CREATE INDEX events_tenant ON events (tenant, id);
CREATE INDEX events_time ON events (time);

CREATE TABLE idempotent (
    owner   TEXT NOT NULL,
    key     TEXT NOT NULL,
    request BLOB NOT NULL,
    status  INTEGER NOT NULL, -- 0: under way
    header  TEXT NOT NULL,
    body    BLOB NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotent_created ON idempotent (created);

CREATE TABLE audit (
    seq        INTEGER PRIMARY KEY,
    time       INTEGER NOT NULL,
    tenant     TEXT NOT NULL,
    agent      TEXT NOT NULL,
    run        TEXT NOT NULL,
    kind       TEXT NOT NULL,
    protocol   TEXT NOT NULL,
    verdict    TEXT NOT NULL,
    access     TEXT NOT NULL,
    host       TEXT NOT NULL,
    rule       TEXT NOT NULL,
    credential TEXT NOT NULL,
    repository TEXT NOT NULL,
    crossing   INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    off        INTEGER NOT NULL,
    len        INTEGER NOT NULL
) STRICT;

-- Sealed blocks of the audit index, and for each term which rows of a block have it.
CREATE TABLE audit_block (
    block    INTEGER PRIMARY KEY,
    rows     INTEGER NOT NULL,
    earliest INTEGER NOT NULL,
    latest   INTEGER NOT NULL
) STRICT;

CREATE TABLE audit_bits (
    term  INTEGER NOT NULL,
    block INTEGER NOT NULL,
    bits  BLOB NOT NULL,
    PRIMARY KEY (block, term) -- so that a block is written in one piece
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_state (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    position INTEGER NOT NULL, -- in the log
    seq      INTEGER NOT NULL, -- the last indexed
    sealed   INTEGER NOT NULL  -- the first block that is not sealed
) STRICT;

INSERT INTO audit_state (one, position, seq, sealed) VALUES (1, 0, 0, 0);
