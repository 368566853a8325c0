"""The keys of the Redis store, and the scripts that read and write them.

All keys share one hash tag, the namespace in braces, so they lie in one slot of a cluster. Callers
pass the keys they know to a script. Only the server knows a job's lane, its owner and the job of an
idempotency key: scripts build those keys from the prefix. They contain the same hash tag, so they
are always on the node that runs the script.

The scripts contain no rules about jobs. They keep the indexes in step with the hashes, and compare
revisions. Each script that writes begins with a shebang line. It makes the server check before the
first write whether writing is possible (memory, replica, disk), so a script runs completely or not
at all. Changes are published last, by `pcall`, so a user without the right to publish can write.

While a cluster migrates the slot key by key, a script may need a key that has already moved, and
stops there. Therefore index entries are written before the job's hash, and removed after it or
together with steps that can be repeated. An interrupted script leaves a superfluous entry, which
`TAKE` and lists remove when they meet it, but never a job without an index entry. Counters change
directly before the hash, so a stopped script has either counted and written a job or neither.

Calls in which no job has a label use shorter scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from hashlib import sha1
from typing import TypeVar

from asyncjobs.core.job import JobId
from asyncjobs.protocols import Change

T = TypeVar("T")

#: The types of values that a command can send.
Argument = str | bytes | int

# The most jobs per script, so that other clients of the server do not wait for long.
_MAX_SCRIPT_JOBS = 128

#: The most bytes of payloads, results and errors per script, unless a single job has more.
MAX_SCRIPT_BYTES = 4 * 1024 * 1024

#: How long after the end of its retention the server expires a job. Maintenance normally deletes
#: the job earlier, even with a clock that is an hour wrong, and cleans up the indexes at once.
_EXPIRY_MARGIN_MS = 24 * 60 * 60 * 1000


class Script:
    """A Lua script, and the digest by which a server calls it after the first time."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Keys:
    """The key names of a namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{{{namespace}}}:"
        #: The version of this layout.
        self.schema = f"{self.prefix}schema"
        #: Counts insertions. It and `schema` remain when every job is deleted.
        self.sequence = f"{self.prefix}sequence"
        #: A hash that maps idempotency key, owner and type (the trace) to the job id.
        self.held = f"{self.prefix}held"
        #: A sorted set of all ids, by order of insertion.
        self.all = f"{self.prefix}all"
        #: The channel on which the ids of changed jobs are published.
        self.changes = f"{self.prefix}changes"

    def job(self, job_id: JobId | str) -> str:
        """Return the name of the hash that stores the job."""
        return f"{self.prefix}job:{job_id}"

    def due(self, lane: str) -> str:
        """Return the name of the sorted set of due jobs in a lane.

        The scores are microseconds, which a double holds exactly up to the year 2255. A member
        consists of the order of insertion in 16 digits, which breaks ties; the id; a space; the
        job's trace: owner, type and idempotency key; and, if the job has or may get labels, a tab
        and these labels. Trace and labels find all other index entries of a job whose hash has
        expired. The job's hash stores its member as `entry`.
        """
        return f"{self.prefix}due:{lane}"

    def owned(self, owner: str) -> str:
        """Return the name of the sorted set of an owner's ids, by order of insertion."""
        return f"{self.prefix}owner:{owner}"

    def completed(self, type: str) -> str:
        """Return the name of the sorted set of a type's completed ids, by order of insertion."""
        return f"{self.prefix}completed:{type}"

    def labelled(self, label: str) -> str:
        """Return the name of the sorted set of a label's ids, by order of insertion."""
        return f"{self.prefix}label:{label}"

    def tally(self, label: str) -> str:
        """Return the name of the hash of a label's counters, which goes with its last job."""
        return f"{self.prefix}tally:{label}"

    def output(self, job_id: JobId | str) -> str:
        """Return the name of the hash that describes a job's output.

        It has the fields `epoch`, `items`, `bytes` and `streams` of the job, and `kind:NAME`,
        `items:NAME`, `bytes:NAME` and `epoch:NAME` of each stream. The chunks of a stream are a
        Redis stream, with the same name and `:NAME`. The id of an entry is the position after the
        chunk. All these keys are deleted and expire with the job, whose hash has the field `output`
        then.
        """
        return f"{self.prefix}output:{job_id}"


#: The fields read of a job, and the fields read of a job in a list.
FIELDS = ("submission", "state", "payload", "result", "errors", "revision", "lane", "due_at")
NARROW = ("submission", "state", "revision", "lane", "due_at")

_READ_NARROW = "".join(f", '{name}'" for name in NARROW)

# Scripts that only read are marked no-writes, so that a replica runs them too.

# KEYS: the index. ARGV: prefix, where to begin, most jobs, most entries to look at, then owner,
#       type and status, each '' for any, else preceded by '='; and what a label
#       begins with if its jobs are left out, else ''.
# Returns where to continue ('' at the end); order, id and fields of each matching job; and the
# entries of jobs that no longer exist. The caller removes those, since this script must not write.
LIST = Script(
    """#!lua flags=no-writes
local prefix, most, entries = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local function fits(wanted, value)
  return wanted == '' or (value and wanted == '=' .. value)
end
local range = redis.call(
  'ZREVRANGEBYSCORE', KEYS[1], ARGV[2], '-inf', 'WITHSCORES', 'LIMIT', 0, entries)
-- The labels of an entry are a JSON array after a tab. The members of a batch mostly come together,
-- so the others in this range are read at once, but not more than there are entries.
local find, without, left_out, unread = string.find, ARGV[8], {}, entries
local function leaves_out(id, order)
  if without == '' or left_out[id] then
    return left_out[id]
  end
  local entry = redis.call('HGET', prefix .. 'job:' .. id, 'entry')
  local tab = entry and find(entry, '\\t', 17, true)
  local place = tab and (find(entry, '["' .. without, tab, true)
    or find(entry, ',"' .. without, tab, true))
  if not place then
    return false
  end
  local label = string.sub(entry, place + 2, find(entry, '"', place + 2, true) - 1)
  local members = unread > 0 and redis.call('ZREVRANGEBYSCORE', prefix .. 'label:' .. label,
    order, range[#range], 'LIMIT', 0, unread) or {}
  for _, member in ipairs(members) do
    left_out[member] = true
  end
  unread = unread - #members
  return true
end
local found, gone = {}, {}
local go_on = #range == 2 * entries and range[#range] or ''
for i = 1, #range, 2 do
  local id, order = range[i], range[i + 1]
  if not leaves_out(id, order) then
    local row = redis.call('HMGET', prefix .. 'job:' .. id, 'entry', 'owner', 'type', 'status'"""
    + _READ_NARROW
    + """)
    if not row[1] then
      gone[#gone + 1] = order
    elseif fits(ARGV[5], row[2]) and fits(ARGV[6], row[3]) and fits(ARGV[7], row[4]) then
      found[#found + 1] = {order, id, unpack(row, 5)}
      if #found == most then
        go_on = order
        break
      end
    end
  end
end
return {go_on, found, gone}"""
)

# KEYS: the due jobs of the lane, the job. ARGV: now, until.
# Returns how many jobs begin before this one. A job due after now is held. A waiting job comes
# after the held jobs and the waiting ones due before it.
COUNT = Script(
    """#!lua flags=no-writes
local entry = redis.call('HGET', KEYS[2], 'entry')
local mine = entry and redis.call('ZSCORE', KEYS[1], entry)
if not mine then
  return 0
end
local now, until_, rank = ARGV[1], ARGV[2], redis.call('ZRANK', KEYS[1], entry)
if tonumber(mine) <= tonumber(now) then
  return rank + redis.call('ZCOUNT', KEYS[1], '(' .. now, until_)
elseif tonumber(mine) <= tonumber(until_) then
  return rank - redis.call('ZCOUNT', KEYS[1], '-inf', now)
end
return redis.call('ZCOUNT', KEYS[1], '(' .. now, until_)"""
)

_READ = "".join(f", '{name}'" for name in FIELDS)

# KEYS: each job. ARGV: most bytes.
# Returns the fields of the jobs, or of the first ones if all are too large; the caller asks again
# for the others. One answer with many rows is parsed much faster than many answers.
READ = Script(
    """#!lua flags=no-writes
local bytes = tonumber(ARGV[1])
local found = {}
for place, job in ipairs(KEYS) do
  local row = redis.call('HMGET', job"""
    + _READ
    + """)
  found[place] = row
  bytes = bytes - #(row[3] or '') - #(row[4] or '') - #(row[5] or '')
  if bytes <= 0 then
    break
  end
end
return found"""
)

#: Publishes the ids in `changed`; the argument after the prefix is the writer.
PUBLISH = """
if #changed > 0 then
  redis.pcall('PUBLISH', prefix .. 'changes', ARGV[2] .. ' ' .. table.concat(changed, ' '))
end
"""

# Sets when the server expires the job. The margin counts from now at the earliest, so a job copied
# from another store long after its retention stays for the whole margin.
_KEEP = f"""
local now
local function keep(job, ends)
  now = now or redis.call('TIME')[1] * 1000
  redis.call('PEXPIREAT', job, math.max(ends, now) + {_EXPIRY_MARGIN_MS})
end
"""

# Returns the keys of a job's output.
_OUTPUT = """
local function output_of(prefix, id)
  local output = prefix .. 'output:' .. id
  local keys = {output}
  for _, field in ipairs(redis.call('HKEYS', output)) do
    if string.sub(field, 1, 5) == 'kind:' then
      keys[#keys + 1] = output .. ':' .. string.sub(field, 6)
    end
  end
  return keys
end
"""

# Adds labels and counts, in the scripts for calls with labels. They have further arguments for each
# job: the number of its labels, and those; the number of arguments for counters, and those, three
# for each counter: label, name and number.
_LABEL = """
    local last = labels + ARGV[labels]
    for place = labels + 1, last do
      redis.call('ZADD', prefix .. 'label:' .. ARGV[place], string.sub(entry, 1, 16), id)
    end
    for place = last + 2, last + 1 + ARGV[last + 1], 3 do
      redis.call('HINCRBY', prefix .. 'tally:' .. ARGV[place], ARGV[place + 1], ARGV[place + 2])
    end
"""

# Removes the labels at the end of an entry, and the counters of a label without jobs.
_UNLABEL = """
local function unlabel(entry, tab)
  local order = string.sub(entry, 1, 16)
  local readable, labels = pcall(cjson.decode, string.sub(entry, tab + 1))
  for _, label in ipairs(readable and labels or {}) do
    local key = prefix .. 'label:' .. label
    redis.call('ZREMRANGEBYSCORE', key, order, order)
    if redis.call('EXISTS', key) == 0 then
      redis.call('UNLINK', prefix .. 'tally:' .. label)
    end
  end
end
"""

# KEYS: sequence, held, all, then each job.
# ARGV: prefix, writer, then for each job: id, lane, due_at, status, type, revision, submission,
#       state, payload, trace, whether it has an idempotency key, owner index, end of retention, the
#       number of further arguments for its hash, and those.
# INSERT_LABELLED: also the labels that the job has or may get, as JSON, or ''; then see `_LABEL`.
# Returns an id for each job: '' if it was added, else the id of the stored job.
# A held key whose job has expired does not count: expiry removes only the hash. Entries in the
# indexes are written before the hash; see the top of the module.
_INSERT = (
    "#!lua"
    + _KEEP
    + """
local prefix, at = ARGV[1], 3
local answers, changed = {}, {}
for place = 4, #KEYS do
  local job = KEYS[place]
  local id, lane, due_at, status, type, revision, submission, state, payload, trace, keyed, owned,
    ends, size = unpack(ARGV, at, at + 13)
  local stored = redis.call('EXISTS', job) == 1 and id
  if not stored and keyed ~= '' then
    stored = redis.call('HGET', KEYS[2], trace)
    if stored and redis.call('EXISTS', prefix .. 'job:' .. stored) == 0 then
      stored = false
    end
  end
  if not stored then
    local order = string.format('%016d', redis.call('INCR', KEYS[1]))
    local entry = order .. id .. ' ' .. trace
--entry
    if due_at ~= '' then
      redis.call('ZADD', prefix .. 'due:' .. lane, due_at, entry)
    end
    if owned ~= '' then
      redis.call('ZADD', owned, order, id)
    end
    if status == 'completed' then
      redis.call('ZADD', prefix .. 'completed:' .. type, order, id)
    end
--label
    redis.call('HSET', job, 'entry', entry, 'lane', lane, 'due_at', due_at, 'status', status,
      'type', type, 'revision', revision, 'submission', submission, 'state', state,
      'payload', payload, unpack(ARGV, at + 14, at + 13 + size))
    redis.call('ZADD', KEYS[3], order, id)
    if keyed ~= '' then
      redis.call('HSET', KEYS[2], trace, id)
    end
    if ends ~= '' then
      keep(job, ends)
    end
    changed[#changed + 1] = id
  end
  answers[#answers + 1] = stored or ''
  at = at + 14 + size
--next
end
"""
    + PUBLISH
    + "return answers"
)

# Skips the arguments for labels.
_NEXT = """
  at = at + 1 + ARGV[at]
  at = at + 1 + ARGV[at]
"""


def _variant(text: str, **parts: str) -> Script:
    for name in ("entry", "label", "next"):
        text = text.replace(f"--{name}\n", parts.get(name, ""))
    return Script(text)


INSERT = _variant(_INSERT)
INSERT_LABELLED = _variant(
    _INSERT,
    entry="""
    local labels = at + 15 + size
    if ARGV[labels - 1] ~= '' then
      entry = entry .. '\\t' .. ARGV[labels - 1]
    end
""",
    label=_LABEL,
    next=f"""
  at = at + 1
{_NEXT}""",
)

# KEYS: the job of each change.
# ARGV: prefix, writer, then for each change: id, expected revision, lane, due_at, status, revision,
#       state, end of retention, the number of further arguments for its hash, and those.
# The labelled variants: then see `_LABEL`.
# Returns 1 or 0 for each change.
# New entries are added before the hash changes, and old ones removed after it, so that a stopped
# script leaves an entry too many, never too few. EXISTS stops it before the first write if a key of
# the output has moved. PERSIST removes the expiry of an earlier status, which would delete a job
# that is no longer terminal.
_REPLACE = (
    _KEEP
    + _OUTPUT
    + """
local prefix, at = ARGV[1], 3
local answers, changed = {}, {}
for place = 1, #KEYS do
  local job = KEYS[place]
  local id, expected, lane, due_at, status, revision, state, ends, size = unpack(ARGV, at, at + 8)
  local found = redis.call(
    'HMGET', job, 'revision', 'lane', 'entry', 'status', 'type', 'output')
  local fits = found[1] == expected
  if fits then
    local entry, completed = found[3], prefix .. 'completed:' .. found[5]
    local expiring = {}
    if ends ~= '' or status ~= found[4] then
      if found[6] then
        expiring = output_of(prefix, id)
        redis.call('EXISTS', unpack(expiring))
      end
      expiring[#expiring + 1] = job
    end
    if status == 'completed' and status ~= found[4] then
      redis.call('ZADD', completed, string.sub(entry, 1, 16), id)
    end
    if due_at ~= '' then
      redis.call('ZADD', prefix .. 'due:' .. lane, due_at, entry)
    end
--label
    redis.call('HSET', job, 'lane', lane, 'due_at', due_at, 'status', status,
      'revision', revision, 'state', state, unpack(ARGV, at + 9, at + 8 + size))
    if due_at == '' or lane ~= found[2] then
      redis.call('ZREM', prefix .. 'due:' .. found[2], entry)
    end
    if found[4] == 'completed' and status ~= found[4] then
      redis.call('ZREM', completed, id)
    end
    for _, key in ipairs(expiring) do
      if ends ~= '' then
        keep(key, ends)
      else
        redis.call('PERSIST', key)
      end
    end
    changed[#changed + 1] = id
  end
  answers[#answers + 1] = fits and 1 or 0
  at = at + 9 + size
--next
end
"""
    + PUBLISH
    + "return answers"
)

#: For changes with results; refused when memory is full.
REPLACE = _variant("#!lua" + _REPLACE)

#: For all other changes. They hardly grow the data (errors of attempts are few and truncated).
#: They must work on a full server: they end jobs and renew leases, and so let it free memory.
REPLACE_STATE = _variant("#!lua flags=allow-oom" + _REPLACE)

_LABELS_OF_CHANGE = """
    local labels = at + 9 + size
"""
REPLACE_LABELLED = _variant("#!lua" + _REPLACE, label=_LABELS_OF_CHANGE + _LABEL, next=_NEXT)
REPLACE_STATE_LABELLED = _variant(
    "#!lua flags=allow-oom" + _REPLACE, label=_LABELS_OF_CHANGE + _LABEL, next=_NEXT
)

# KEYS: held, all, then the due jobs of each lane. ARGV: prefix, now, until, most jobs, most bytes.
# Returns whether more jobs may be due, and the id and fields of each job taken.
# Moving entries needs no memory, so allow-oom lets maintenance go on when memory is full.
# An entry that differs from the one in the job's hash was left by a stopped script or an expired
# job. It is removed here, in a script that may write, and the job is not taken.
# Each lane contributes at most `most` entries, so `#due >= most` means that more may be due.
TAKE = Script(
    """#!lua flags=allow-oom
local prefix, now, moved = ARGV[1], ARGV[2], ARGV[3]
local most, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
"""
    + _UNLABEL
    + """
local function clean(id, entry)
  local order, tab = string.sub(entry, 1, 16), string.find(entry, '\\t', 17, true)
  local trace = string.sub(entry, #id + 18, tab and tab - 1)
  if tab then
    unlabel(entry, tab)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], order, order)
  if redis.call('HGET', KEYS[1], trace) == id then
    redis.call('HDEL', KEYS[1], trace)
  end
  local readable, names = pcall(cjson.decode, trace)
  if readable then
    redis.call('ZREMRANGEBYSCORE', prefix .. 'completed:' .. names[2], order, order)
    if names[1] ~= cjson.null then
      redis.call('ZREMRANGEBYSCORE', prefix .. 'owner:' .. names[1], order, order)
    end
  end
end
local due = {}
for place = 3, #KEYS do
  local key = KEYS[place]
  local range = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #range, 2 do
    due[#due + 1] = {key, range[i], tonumber(range[i + 1])}
  end
end
table.sort(due, function(a, b)
  if a[3] == b[3] then
    return a[2] < b[2]
  end
  return a[3] < b[3]
end)
local taken, seen = {}, 0
for _, item in ipairs(due) do
  if #taken == most or bytes <= 0 then
    break
  end
  seen = seen + 1
  local key, entry = item[1], item[2]
  local id = string.match(entry, '^([^ ]*)', 17)
  local job = prefix .. 'job:' .. id
  local row = redis.call('HMGET', job, 'entry', 'lane'"""
    + _READ
    + """)
  if row[1] == entry and prefix .. 'due:' .. (row[2] or '') == key then
    redis.call('ZADD', key, moved, entry)
    redis.call('HSET', job, 'due_at', moved)
    bytes = bytes - #(row[5] or '') - #(row[6] or '') - #(row[7] or '')
    taken[#taken + 1] = {id, unpack(row, 3)}
  else
    if not row[1] then
      clean(id, entry)
    end
    redis.call('ZREM', key, entry)
  end
end
local more = (seen < #due or #due >= most) and 1 or 0
return {more, taken}"""
)

# KEYS: held, all, then each job. ARGV: prefix, writer, then each id.
# The hash, which names the other entries, goes last: a stopped script can be repeated. UNLINK frees
# large values in the background.
DELETE = Script(
    """#!lua flags=allow-oom
local prefix = ARGV[1]
"""
    + _UNLABEL
    + _OUTPUT
    + """
local changed = {}
for place = 3, #KEYS do
  local job, id = KEYS[place], ARGV[place]
  local entry, lane, owner, status, type, output =
    unpack(redis.call('HMGET', job, 'entry', 'lane', 'owner', 'status', 'type', 'output'))
  redis.call('ZREM', KEYS[2], id)
  if entry then
    local tab = string.find(entry, '\\t', 17, true)
    local trace = string.sub(entry, #id + 18, tab and tab - 1)
    if tab then
      unlabel(entry, tab)
    end
    if redis.call('HGET', KEYS[1], trace) == id then
      redis.call('HDEL', KEYS[1], trace)
    end
    if owner then
      redis.call('ZREM', prefix .. 'owner:' .. owner, id)
    end
    if status == 'completed' then
      redis.call('ZREM', prefix .. 'completed:' .. (type or ''), id)
    end
    redis.call('ZREM', prefix .. 'due:' .. (lane or ''), entry)
    changed[#changed + 1] = id
  end
  if output then
    redis.call('UNLINK', unpack(output_of(prefix, id)))
  end
  redis.call('UNLINK', job)
end
"""
    + PUBLISH
    + "return changed"
)


def in_portions(items: Sequence[T], size: Callable[[T], int]) -> Generator[Sequence[T]]:
    """Split items into portions for one script each; an item that is too large goes alone."""
    start, total = 0, 0
    for index, item in enumerate(items):
        total += size(item)
        if index > start and (total > MAX_SCRIPT_BYTES or index - start == _MAX_SCRIPT_JOBS):
            yield items[start:index]
            start, total = index, size(item)
    if items:
        yield items[start:]


def script_for(changes: Sequence[Change], *, labelled: bool) -> Script:
    """Return the script that writes some changes."""
    if any(change.job.result_json is not None for change in changes):
        return REPLACE_LABELLED if labelled else REPLACE
    return REPLACE_STATE_LABELLED if labelled else REPLACE_STATE
