-- +goose Up

-- Times are microseconds since 1970 in UTC, 0 for none.

CREATE TABLE objects (
    kind    text COLLATE "C" NOT NULL,
    id      text COLLATE "C" NOT NULL,
    tenant  text COLLATE "C" NOT NULL,
    name    text COLLATE "C" NOT NULL,
    folded  text COLLATE "C" NOT NULL, -- name in lower case, to search and sort by
    parent  text COLLATE "C" NOT NULL,
    state   text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    created bigint NOT NULL,
    updated bigint NOT NULL,
    data    text COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, id)
);

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
    hash    bytea NOT NULL PRIMARY KEY,
    kind    text COLLATE "C" NOT NULL,
    id      text COLLATE "C" NOT NULL,
    tenant  text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    data    text COLLATE "C" NOT NULL,
    created bigint NOT NULL,
    seen    bigint NOT NULL,
    expires bigint NOT NULL
);

CREATE UNIQUE INDEX proofs_subject ON proofs (kind, tenant, subject, id);
CREATE INDEX proofs_expires ON proofs (expires);

CREATE TABLE events (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant  text COLLATE "C" NOT NULL,
    type    text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    agent   text COLLATE "C" NOT NULL,
    state   text COLLATE "C" NOT NULL,
    time    bigint NOT NULL
);

CREATE INDEX events_tenant ON events (tenant, id);
CREATE INDEX events_time ON events (time);

CREATE TABLE idempotent (
    owner   text COLLATE "C" NOT NULL,
    key     text COLLATE "C" NOT NULL,
    request bytea NOT NULL,
    status  integer NOT NULL, -- 0: under way
    header  text COLLATE "C" NOT NULL,
    body    bytea NOT NULL,
    created bigint NOT NULL,
    PRIMARY KEY (owner, key)
);

CREATE INDEX idempotent_created ON idempotent (created);

CREATE TABLE audit (
    seq        bigint PRIMARY KEY,
    time       bigint NOT NULL,
    tenant     text COLLATE "C" NOT NULL,
    agent      text COLLATE "C" NOT NULL,
    run        text COLLATE "C" NOT NULL,
    kind       text COLLATE "C" NOT NULL,
    protocol   text COLLATE "C" NOT NULL,
    verdict    text COLLATE "C" NOT NULL,
    access     text COLLATE "C" NOT NULL,
    host       text COLLATE "C" NOT NULL,
    rule       text COLLATE "C" NOT NULL,
    credential text COLLATE "C" NOT NULL,
    repository text COLLATE "C" NOT NULL,
    crossing   bigint NOT NULL,
    count      bigint NOT NULL,
    off        bigint NOT NULL,
    len        integer NOT NULL
);

-- Sealed blocks of the audit index, and for each term which rows of a block have it.
CREATE TABLE audit_block (
    block    bigint PRIMARY KEY,
    rows     bigint NOT NULL,
    earliest bigint NOT NULL,
    latest   bigint NOT NULL
);

CREATE TABLE audit_bits (
    term  bigint NOT NULL,
    block bigint NOT NULL,
    bits  bytea NOT NULL,
    PRIMARY KEY (block, term) -- so that a block is written in one piece
);

CREATE TABLE audit_state (
    one      bigint PRIMARY KEY CHECK (one = 1),
    position bigint NOT NULL, -- in the log
    seq      bigint NOT NULL, -- the last indexed
    sealed   bigint NOT NULL  -- the first block that is not sealed
);

INSERT INTO audit_state (one, position, seq, sealed) VALUES (1, 0, 0, 0);

-- Bits are dense already; what is larger than a page allows may leave it, but nothing tries to compress it first.
ALTER TABLE audit_bits ALTER COLUMN bits SET STORAGE EXTERNAL;
