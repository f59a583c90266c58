"""Numbered migrations: each runs once, in a transaction, and is recorded in ``_migrations``."""

from __future__ import annotations

import sqlite3

from popi_edge.errors import StoreError

MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "signals",
        """
        CREATE TABLE signals (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            user TEXT NOT NULL,
            kind TEXT NOT NULL,
            at TEXT NOT NULL,
            source TEXT NOT NULL,
            hash TEXT NOT NULL,
            body TEXT NOT NULL,
            UNIQUE (user, kind, hash)
        );
        CREATE INDEX signals_user_seq ON signals (user, seq);
        """,
    ),
    (
        2,
        "summaries",
        """
        CREATE TABLE summaries (
            id TEXT PRIMARY KEY,
            user TEXT NOT NULL,
            version INTEGER NOT NULL,
            text TEXT NOT NULL,
            tokens INTEGER NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('draft', 'approved', 'edited', 'insufficient', 'stale')),
            reason TEXT NOT NULL DEFAULT '',
            model TEXT NOT NULL,
            contract INTEGER NOT NULL,
            signal_ids TEXT NOT NULL,
            at TEXT NOT NULL,
            approved_at TEXT,
            UNIQUE (user, version)
        );
        """,
    ),
    (
        3,
        "egress",
        """
        CREATE TABLE egress (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            at TEXT NOT NULL,
            meta TEXT NOT NULL,
            salt BLOB NOT NULL,
            body BLOB,
            body_digest TEXT NOT NULL,
            prev TEXT NOT NULL,
            hash TEXT NOT NULL
        );
        """,
    ),
    (
        4,
        "revoked and overruled",
        """
        ALTER TABLE summaries RENAME TO summaries_before;
        CREATE TABLE summaries (
            id TEXT PRIMARY KEY,
            user TEXT NOT NULL,
            version INTEGER NOT NULL,
            text TEXT NOT NULL,
            tokens INTEGER NOT NULL,
            status TEXT NOT NULL
                CHECK (status IN ('draft', 'approved', 'edited', 'revoked', 'insufficient', 'stale')),
            reason TEXT NOT NULL DEFAULT '',
            model TEXT NOT NULL,
            contract INTEGER NOT NULL,
            signal_ids TEXT NOT NULL,
            at TEXT NOT NULL,
            approved_at TEXT,
            revoked_at TEXT,
            overruled TEXT NOT NULL DEFAULT '[]',
            UNIQUE (user, version)
        );
        INSERT INTO summaries
            (id, user, version, text, tokens, status, reason, model, contract, signal_ids, at, approved_at)
            SELECT id, user, version, text, tokens, status, reason, model, contract, signal_ids, at, approved_at
            FROM summaries_before;
        DROP TABLE summaries_before;
        """,
    ),
    (5, "egress_mac", "ALTER TABLE egress ADD COLUMN mac TEXT"),
)
LATEST = MIGRATIONS[-1][0]


def version(conn: sqlite3.Connection) -> int:
    """The number of the last migration that this database has had (0 when new)."""
    table = conn.execute("SELECT 1 FROM sqlite_master WHERE name = '_migrations'").fetchone()
    if table is None:
        return 0
    return int(conn.execute("SELECT coalesce(max(number), 0) FROM _migrations").fetchone()[0])


def migrate(conn: sqlite3.Connection, where: str) -> None:
    """Bring the database up to ``LATEST``. ``conn`` must be in autocommit mode.

    Raises StoreError when the database was made by a newer popi-edge; it is then left as it is.
    """
    if version(conn) > LATEST:
        found = version(conn)
        raise StoreError(f"{where} was written by a newer popi-edge (schema {found} > {LATEST}); upgrade")
    if version(conn) == LATEST:
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        columns = "number INTEGER PRIMARY KEY, name TEXT, at TEXT"
        conn.execute(f"CREATE TABLE IF NOT EXISTS _migrations ({columns})")
        done = version(conn)  # another process may have migrated while we waited for the lock
        for number, name, sql in MIGRATIONS:
            if number <= done:
                continue
            for statement in filter(str.strip, sql.split(";")):
                conn.execute(statement)
            conn.execute("INSERT INTO _migrations VALUES (?, ?, datetime('now'))", (number, name))
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:  # a full disk may have rolled it back already
            conn.execute("ROLLBACK")
        raise
