"""The tables of the store, as steps from each version to the next.

Invariant: a step that was released never changes; a new one is added. What must not happen is made impossible here and
not only in Python: a move that is none, a job that begins anywhere but in `receiving`, two jobs of one study that wait,
two current results of one study, an event that is changed.
"""

from __future__ import annotations

from pipelines.store.moves import MOVES, State

_STATES = ", ".join(f"'{state}'" for state in State)
_MOVES = ", ".join(f"('{before}', '{after}')" for before, after in sorted(MOVES))

_FIRST = f"""
CREATE TABLE clock (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    boot TEXT NOT NULL,          -- which boot of the machine `ahead` belongs to
    ahead REAL NOT NULL,         -- seconds of the store minus seconds since boot
    last REAL NOT NULL           -- the greatest second of the store that was written
) STRICT;

CREATE TABLE studies (
    study_uid TEXT PRIMARY KEY,
    first_arrival REAL NOT NULL,
    last_arrival REAL NOT NULL,
    purge INTEGER NOT NULL DEFAULT 0 CHECK (purge IN (0, 1))  -- whether its bytes may go
) STRICT;

CREATE INDEX studies_to_purge ON studies (study_uid) WHERE purge = 1;

CREATE TABLE instances (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    study_uid TEXT NOT NULL REFERENCES studies,
    series_uid TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    digest TEXT NOT NULL,        -- SHA-256 over transfer syntax and data set; names the file
    size INTEGER NOT NULL,       -- bytes
    source TEXT NOT NULL,
    arrival REAL NOT NULL,       -- seconds of the store
    received_at TEXT NOT NULL,   -- by the wall clock, for people
    stands INTEGER NOT NULL CHECK (stands IN (0, 1)),  -- whether it is part of the study, or kept beside it
    kept INTEGER NOT NULL DEFAULT 1 CHECK (kept IN (0, 1)),  -- whether its bytes are still here
    UNIQUE (study_uid, sop_instance_uid, digest)
) STRICT;
CREATE UNIQUE INDEX one_instance_stands ON instances (study_uid, sop_instance_uid) WHERE stands = 1;
CREATE INDEX instances_by_uid ON instances (sop_instance_uid);
CREATE INDEX instances_of_series ON instances (study_uid, series_uid);

CREATE TABLE versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    study_uid TEXT NOT NULL REFERENCES studies,
    number INTEGER NOT NULL CHECK (number > 0),
    predecessor INTEGER REFERENCES versions,
    through_seq INTEGER,         -- the last instance that belongs to it; NULL while instances are awaited
    UNIQUE (study_uid, number)
) STRICT;

CREATE TABLE moves (before TEXT NOT NULL, after TEXT NOT NULL, PRIMARY KEY (before, after)) STRICT;
INSERT INTO moves VALUES {_MOVES};

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    version INTEGER NOT NULL UNIQUE REFERENCES versions,
    study_uid TEXT NOT NULL REFERENCES studies,
    name TEXT UNIQUE,            -- what it is made of; given when it is first begun
    state TEXT NOT NULL CHECK (state IN ({_STATES})),
    priority INTEGER NOT NULL DEFAULT 0,
    opened REAL NOT NULL,
    last_arrival REAL NOT NULL,
    due REAL NOT NULL DEFAULT 0, -- not before this second of the store
    starts INTEGER NOT NULL DEFAULT 0,
    interruptions INTEGER NOT NULL DEFAULT 0,  -- how often the watcher ended while it ran
    faults INTEGER NOT NULL DEFAULT 0,
    holder TEXT,                 -- who runs it
    beat INTEGER NOT NULL DEFAULT 0,
    reason TEXT,                 -- JSON of the error that brought it here
    CHECK ((holder IS NOT NULL) = (state = 'running')),
    CHECK (name IS NOT NULL OR state IN ('receiving', 'ready'))
) STRICT;
-- A job that ran and was interrupted is ready again, too, and has its name; a newer version may wait behind it.
CREATE UNIQUE INDEX one_job_waits ON jobs (study_uid) WHERE state IN ('receiving', 'ready') AND name IS NULL;
CREATE INDEX jobs_by_state ON jobs (state, due);
CREATE INDEX jobs_by_study ON jobs (study_uid, id);

CREATE TABLE results (
    job INTEGER PRIMARY KEY REFERENCES jobs,
    study_uid TEXT NOT NULL REFERENCES studies,
    report_sha256 TEXT NOT NULL,
    replaces INTEGER REFERENCES results,
    current INTEGER NOT NULL CHECK (current IN (0, 1))
) STRICT;
CREATE UNIQUE INDEX one_result_is_current ON results (study_uid) WHERE current = 1;

CREATE TABLE outputs (           -- what we made, which a PACS may send back to us
    sop_instance_uid TEXT PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs
) STRICT;

CREATE TABLE deliveries (
    job INTEGER NOT NULL REFERENCES results,
    destination TEXT NOT NULL,
    confirmed INTEGER NOT NULL DEFAULT 0 CHECK (confirmed IN (0, 1)),
    due REAL NOT NULL DEFAULT 0,
    faults INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    PRIMARY KEY (job, destination)
) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),  -- by the wall clock, for people
    code TEXT NOT NULL,
    study_uid TEXT,
    job INTEGER,
    detail TEXT
) STRICT;
CREATE INDEX events_of_job ON events (job);

CREATE TRIGGER jobs_begin_receiving BEFORE INSERT ON jobs WHEN NEW.state <> 'receiving'
BEGIN SELECT RAISE(ABORT, 'illegal_move: a job begins in receiving'); END;

CREATE TRIGGER jobs_move BEFORE UPDATE OF state ON jobs
WHEN NEW.state <> OLD.state AND NOT EXISTS (SELECT 1 FROM moves WHERE before = OLD.state AND after = NEW.state)
BEGIN SELECT RAISE(ABORT, 'illegal_move: there is no such move'); END;

CREATE TRIGGER jobs_keep_their_name BEFORE UPDATE OF name ON jobs
WHEN OLD.state NOT IN ('receiving', 'ready') AND NEW.name IS NOT OLD.name
BEGIN SELECT RAISE(ABORT, 'illegal_move: what a job is made of is fixed'); END;

CREATE TRIGGER jobs_done_have_a_result BEFORE UPDATE OF state ON jobs
WHEN NEW.state = 'done' AND OLD.state <> 'done' AND NOT EXISTS (SELECT 1 FROM results WHERE job = NEW.id AND current)
BEGIN SELECT RAISE(ABORT, 'illegal_move: a job without a current result is not done'); END;

CREATE TRIGGER jobs_opened AFTER INSERT ON jobs
BEGIN INSERT INTO events (code, study_uid, job, detail) VALUES ('receiving', NEW.study_uid, NEW.id, NULL); END;

CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN NEW.state <> OLD.state
BEGIN INSERT INTO events (code, study_uid, job, detail) VALUES (NEW.state, NEW.study_uid, NEW.id, NEW.reason); END;

CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'an event is not changed'); END;
"""  # noqa: S608 nothing in it comes from outside

# What a worklist is ordered by; made when a result is verified, so that nobody reads ten thousand reports for one page.
_TRIAGE = """
CREATE TABLE triage (
    job INTEGER PRIMARY KEY REFERENCES results ON DELETE CASCADE,
    rank INTEGER NOT NULL,       -- the smaller, the sooner
    assessment TEXT,             -- NULL: nothing was judged
    score REAL,                  -- probability of the most urgent thing; NULL where it has none
    source TEXT NOT NULL,        -- whose number that is
    title TEXT NOT NULL,         -- what it is a probability of
    disagreements INTEGER NOT NULL
) STRICT;
CREATE INDEX results_by_study ON results (study_uid, job);
"""

_ROUTES = """
ALTER TABLE jobs ADD COLUMN route TEXT;   -- JSON of what the rules have decided; NULL: no rule was asked
ALTER TABLE jobs ADD COLUMN ended REAL;   -- the second of the store when it was done
"""

# Before this each file was waited for before its row was written.
_SURE = """
CREATE TABLE sure (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    through INTEGER NOT NULL     -- the files of all instances up to this number are known to be on disk
) STRICT;
INSERT INTO sure SELECT 1, coalesce(max(seq), 0) FROM instances;
"""

_WORKITEMS = """
CREATE TABLE workitems (
    uid TEXT PRIMARY KEY,
    server TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    transaction_uid TEXT NOT NULL,  -- under which we claim it; no one else may know
    step TEXT NOT NULL
        CHECK (step IN ('claiming', 'claimed', 'completing', 'canceling', 'completed', 'canceled', 'lost')),
    begun TEXT NOT NULL,            -- by the wall clock, for people
    told TEXT                       -- DICOM JSON of what the other side is told at the end
) STRICT;
"""

_URGENT_WORKITEMS = """
ALTER TABLE workitems ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;  -- as jobs have it
"""

# The n-th takes a database of version n to version n + 1 (PRAGMA user_version).
STEPS = (_FIRST, _TRIAGE, _ROUTES, _SURE, _WORKITEMS, _URGENT_WORKITEMS)
