"""The statements of `stores.postgres`; `{s}` stands for the schema.

All parameters are typed by a cast, and most are arrays: a call of many jobs is one statement, and
each statement is one transaction.
"""

_WHOLE = "id, submission, state, payload, result, revision, lane, due_at, seq"
_JOBS = "{s}.jobs JOIN {s}.submissions USING (seq)"

BY_ID = f"""
SELECT {_WHOLE} FROM {_JOBS} LEFT JOIN {{s}}.results USING (seq) WHERE id = ANY (%b::text[])
"""  # noqa: S608  # constants

LIST = f"""
SELECT id, submission, state, ''::bytea, NULL, revision, lane, due_at, seq
FROM {_JOBS} WHERE {{where}} ORDER BY seq DESC LIMIT %b::bigint
"""  # noqa: S608  # constants

# Of one statement, so that a job is never seen without its payload. Rows are added in the order of
# what is unique about them: two processes that add the same ones in different orders would wait for
# each other. `seq` is given out before, in the order of the call.
INSERT = """
WITH given AS MATERIALIZED (
    SELECT nextval('{s}.jobs_seq') AS seq, * FROM unnest(
        %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[],
        %b::text[], %b::text[], %b::text[], %b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[]
    ) AS _(id, lane, due_at, revision, status, type, owner, key, state, submission, payload, result)
), added AS (
    INSERT INTO {s}.jobs (seq, id, lane, due_at, revision, status, type, owner, key, state)
    SELECT seq, id, lane, due_at, revision, status, type, owner, key, state
    FROM given ORDER BY key, type, owner, id
    ON CONFLICT DO NOTHING RETURNING seq
), wide AS (
    INSERT INTO {s}.submissions (seq, submission, payload)
    SELECT seq, submission, payload FROM added JOIN given USING (seq)
), results AS (
    INSERT INTO {s}.results (seq, result)
    SELECT seq, result FROM added JOIN given USING (seq) WHERE result IS NOT NULL
)
SELECT id FROM added JOIN given USING (seq)
"""

IN_THE_WAY = f"""
SELECT asked.place, {_WHOLE}
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[])
    WITH ORDINALITY AS asked(asked_id, asked_type, asked_owner, asked_key, place)
CROSS JOIN LATERAL (
    SELECT seq AS seq FROM {{s}}.jobs WHERE id = asked_id
    UNION ALL
    SELECT seq FROM {{s}}.jobs WHERE key = asked_key AND type = asked_type
        AND coalesce(owner, '') = coalesce(asked_owner, '')
        AND (owner IS NULL) = (asked_owner IS NULL)
    LIMIT 1
) AS found JOIN {_JOBS} USING (seq) LEFT JOIN {{s}}.results USING (seq)
"""  # noqa: S608  # constants

UPDATE = """
WITH given AS (
    SELECT * FROM unnest(
        %b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::bigint[], %b::text[],
        %b::bytea[], %b::bytea[]
    ) AS _(id, expected, revision, lane, due_at, status, state, result)
), done AS (
    UPDATE {s}.jobs SET (state, revision, lane, due_at, status)
        = ROW (given.state, given.revision, given.lane, given.due_at, given.status)
    FROM given WHERE jobs.id = given.id AND jobs.revision = given.expected
    RETURNING jobs.id, jobs.seq, given.result
), kept AS (
    INSERT INTO {s}.results (seq, result)
    SELECT seq, result FROM done WHERE result IS NOT NULL
    ON CONFLICT (seq) DO UPDATE SET result = excluded.result
)
SELECT id FROM done
"""

# One index scan per lane, in the order of the index; what others take at this moment is passed by.
TAKE = f"""
WITH due AS MATERIALIZED (
    SELECT one.seq, one.due_at AS was_due
    FROM unnest(%b::text[]) AS wanted(lane) CROSS JOIN LATERAL (
        SELECT seq, due_at FROM {{s}}.jobs
        WHERE jobs.lane = wanted.lane AND due_at <= %b::bigint
        ORDER BY due_at, seq LIMIT %b::bigint FOR UPDATE SKIP LOCKED
    ) AS one ORDER BY one.due_at, one.seq LIMIT %b::bigint
), moved AS (
    UPDATE {{s}}.jobs SET due_at = %b::bigint FROM due WHERE jobs.seq = due.seq
    RETURNING jobs.*, due.was_due
)
SELECT {_WHOLE} FROM moved JOIN {{s}}.submissions USING (seq) LEFT JOIN {{s}}.results USING (seq)
ORDER BY was_due, seq
"""  # noqa: S608  # constants

DELETE = """
WITH gone AS (
    DELETE FROM {s}.jobs WHERE id = ANY (%b::text[]) RETURNING seq
), submissions AS (
    DELETE FROM {s}.submissions USING gone WHERE submissions.seq = gone.seq
)
DELETE FROM {s}.results USING gone WHERE results.seq = gone.seq
"""

BEFORE = """
SELECT count(*) FROM (
    SELECT 1 FROM {s}.jobs WHERE lane = %b::text AND due_at <= %b::bigint
    AND seq < (SELECT seq FROM {s}.jobs WHERE id = %b::text) LIMIT %b::bigint
) AS before
"""

FIRST_DUE = """
SELECT (SELECT min(due_at) FROM {s}.jobs WHERE jobs.lane = asked.lane)
FROM unnest(%b::text[]) WITH ORDINALITY AS asked (lane, place) ORDER BY place
"""

NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

# The same for two connections only where both lead to the same tables of the same server.
HERE = """
SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
    (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),
    to_regclass('{s}.jobs')::oid::bigint
"""
HERE_AND_WHO = f"{HERE}, txid_current()"

FATES = "SELECT asked, txid_status(asked) FROM unnest(%b::bigint[]) AS asked"

# In one statement, since both are for the same moment: those who listen are told ids, those who
# cannot look at the counter.
TELL = "SELECT nextval('{s}.changes'), pg_notify(%b::text, %b::text)"
# The first value is the last one already before it is given out.
TOLD = "SELECT last_value + is_called::int FROM {s}.changes"
