"""What the Redis store calls its keys, and the scripts by which it changes several at once.

All keys share one hash tag, the namespace in braces, so they lie in one slot of a cluster. The
scripts are told the keys they can be told. Which lane a job was in, whose it is, and which job has
an idempotency key, only the server knows: the keys of those are made from the prefix, inside the
same hash tag, and so are always on the node that runs the script.

The scripts know no rules of jobs. They keep the indexes in step with the hashes, and compare
revisions. Each begins with a line that makes the server check before the first write whether it may
write at all (memory, replica, disk): a script is done as a whole or not begun. The changes are
published last, by `pcall`: who may not publish may still write.
"""

from __future__ import annotations

from hashlib import sha1

from asyncjobs.model import JobId


class Keys:
    """The names of a namespace's keys."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{{{namespace}}}:"
        #: The version of this layout.
        self.schema = f"{self.prefix}schema"
        #: Counts insertions. It and `schema` stay when every job is deleted.
        self.sequence = f"{self.prefix}sequence"
        #: A hash from idempotency key, with owner and type, to job id.
        self.held = f"{self.prefix}held"
        #: A sorted set of all ids, by order of insertion.
        self.all = f"{self.prefix}all"
        #: The channel on which ids of changed jobs are published.
        self.changes = f"{self.prefix}changes"

    def job(self, job_id: JobId | str) -> str:
        """Name the hash that is the job."""
        return f"{self.prefix}job:{job_id}"

    def due(self, lane: str) -> str:
        """Name the sorted set of what is due in a lane.

        Its scores are microseconds, which a double holds exactly up to the year 2255. Its members
        are the order of insertion, in 16 digits, and the id: so ties go in that order.
        """
        return f"{self.prefix}due:{lane}"

    def owned(self, owner: str) -> str:
        """Name the sorted set of an owner's ids, by order of insertion."""
        return f"{self.prefix}owner:{owner}"

    def completed(self, type: str) -> str:
        """Name the sorted set of a type's completed ids, by order of insertion."""
        return f"{self.prefix}completed:{type}"


class Script:
    """A Lua text, and the digest by which a server that has seen it knows it."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


#: What is read of a job, and what of one in a list.
FIELDS = ("submission", "state", "payload", "result", "revision", "lane", "due_at")
NARROW = ("submission", "state", "revision", "lane", "due_at")

_READ = "".join(f", '{name}'" for name in FIELDS)
_READ_NARROW = "".join(f", '{name}'" for name in NARROW)

_PUBLISH = """
if #changed > 0 then
  redis.pcall('PUBLISH', prefix .. 'changes', ARGV[2] .. ' ' .. table.concat(changed, ' '))
end
"""

# KEYS: sequence, held, all, then each job.
# ARGV: prefix, writer, then for each job: id, lane, due_at, status, type, revision, submission,
#       state, payload, key, owner index, the number of further arguments for its hash, and those.
# Answers with an id for each job: '' where it was added, else that of the job that is stored.
INSERT = Script(
    """#!lua
local prefix, at = ARGV[1], 3
local answers, changed = {}, {}
for place = 4, #KEYS do
  local job = KEYS[place]
  local id, lane, due_at, status, type, revision, submission, state, payload, key, owned, size =
    unpack(ARGV, at, at + 11)
  local stored = redis.call('EXISTS', job) == 1 and id
  if not stored and key ~= '' then
    stored = redis.call('HGET', KEYS[2], key)
    if stored and redis.call('EXISTS', prefix .. 'job:' .. stored) == 0 then
      stored = false
    end
  end
  if not stored then
    local order = string.format('%016d', redis.call('INCR', KEYS[1]))
    redis.call('HSET', job, 'order', order, 'lane', lane, 'due_at', due_at, 'status', status,
      'type', type, 'revision', revision, 'submission', submission, 'state', state,
      'payload', payload, unpack(ARGV, at + 12, at + 11 + size))
    redis.call('ZADD', KEYS[3], order, id)
    if due_at ~= '' then
      redis.call('ZADD', prefix .. 'due:' .. lane, due_at, order .. id)
    end
    if key ~= '' then
      redis.call('HSET', KEYS[2], key, id)
    end
    if owned ~= '' then
      redis.call('ZADD', owned, order, id)
    end
    if status == 'completed' then
      redis.call('ZADD', prefix .. 'completed:' .. type, order, id)
    end
    changed[#changed + 1] = id
  end
  answers[#answers + 1] = stored or ''
  at = at + 12 + size
end
"""
    + _PUBLISH
    + "return answers"
)

# KEYS: the job of each change.
# ARGV: prefix, writer, then for each change: id, expected revision, lane, due_at, status, revision,
#       state, the number of further arguments for its hash, and those.
# Answers with 1 or 0 for each change.
_REPLACE = (
    """
local prefix, at = ARGV[1], 3
local answers, changed = {}, {}
for place = 1, #KEYS do
  local job = KEYS[place]
  local id, expected, lane, due_at, status, revision, state, size = unpack(ARGV, at, at + 7)
  local found = redis.call('HMGET', job, 'revision', 'lane', 'order', 'status', 'type')
  local fits = found[1] == expected
  if fits then
    local member = found[3] .. id
    if due_at == '' or lane ~= found[2] then
      redis.call('ZREM', prefix .. 'due:' .. found[2], member)
    end
    if due_at ~= '' then
      redis.call('ZADD', prefix .. 'due:' .. lane, due_at, member)
    end
    if status ~= found[4] then
      local completed = prefix .. 'completed:' .. found[5]
      if status == 'completed' then
        redis.call('ZADD', completed, found[3], id)
      elseif found[4] == 'completed' then
        redis.call('ZREM', completed, id)
      end
    end
    redis.call('HSET', job, 'lane', lane, 'due_at', due_at, 'status', status,
      'revision', revision, 'state', state, unpack(ARGV, at + 8, at + 7 + size))
    changed[#changed + 1] = id
  end
  answers[#answers + 1] = fits and 1 or 0
  at = at + 8 + size
end
"""
    + _PUBLISH
    + "return answers"
)

#: For changes that bring results; refused where memory is full.
REPLACE = Script("#!lua" + _REPLACE)

#: For all others. They hardly grow, and are what ends jobs and keeps leases, so that a full server
#: does not stay full.
REPLACE_STATE = Script("#!lua flags=allow-oom" + _REPLACE)

# KEYS: what is due in each lane. ARGV: prefix, now, until, most jobs, most bytes.
# Answers with whether there may be more, and with id and fields of each job taken.
# Moving what is there needs no memory: housekeeping must not stop where memory is full.
TAKE = Script(
    """#!lua flags=allow-oom
local prefix, now, moved = ARGV[1], ARGV[2], ARGV[3]
local most, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local due = {}
for _, key in ipairs(KEYS) do
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
for _, entry in ipairs(due) do
  if #taken == most or bytes <= 0 then
    break
  end
  seen = seen + 1
  local key, member = entry[1], entry[2]
  local order, id = string.sub(member, 1, 16), string.sub(member, 17)
  local job = prefix .. 'job:' .. id
  if redis.call('HGET', job, 'order') ~= order then
    redis.call('ZREM', key, member)
  else
    redis.call('ZADD', key, moved, member)
    redis.call('HSET', job, 'due_at', moved)
    local row = redis.call('HMGET', job"""
    + _READ
    + """)
    bytes = bytes - #(row[3] or '') - #(row[4] or '')
    taken[#taken + 1] = {id, unpack(row)}
  end
end
local more = (seen < #due or #due >= most) and 1 or 0
return {more, taken}"""
)

# KEYS: held, all, then each job. ARGV: prefix, writer, then each id.
DELETE = Script(
    """#!lua flags=allow-oom
local prefix = ARGV[1]
local changed = {}
for place = 3, #KEYS do
  local job, id = KEYS[place], ARGV[place]
  local order, lane, key, owner, status, type =
    unpack(redis.call('HMGET', job, 'order', 'lane', 'key', 'owner', 'status', 'type'))
  redis.call('ZREM', KEYS[2], id)
  if order then
    redis.call('ZREM', prefix .. 'due:' .. (lane or ''), order .. id)
    if key and redis.call('HGET', KEYS[1], key) == id then
      redis.call('HDEL', KEYS[1], key)
    end
    if owner then
      redis.call('ZREM', prefix .. 'owner:' .. owner, id)
    end
    if status == 'completed' then
      redis.call('ZREM', prefix .. 'completed:' .. (type or ''), id)
    end
    changed[#changed + 1] = id
  end
  redis.call('UNLINK', job)
end
"""
    + _PUBLISH
    + "return #changed"
)

# KEYS: the index. ARGV: prefix, where to begin, most jobs, most entries to look at, then owner,
#       type and status, each '' for any, else behind a '='.
# Answers with where to go on ('' at the end), with order, id and fields of each job that fits, and
# with the entries of jobs that are not there any more.
LIST = Script(
    """#!lua flags=no-writes
local prefix, most, entries = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local function fits(wanted, value)
  return wanted == '' or (value and wanted == '=' .. value)
end
local range = redis.call(
  'ZREVRANGEBYSCORE', KEYS[1], ARGV[2], '-inf', 'WITHSCORES', 'LIMIT', 0, entries)
local found, gone = {}, {}
local go_on = #range == 2 * entries and range[#range] or ''
for i = 1, #range, 2 do
  local id, order = range[i], range[i + 1]
  local row = redis.call('HMGET', prefix .. 'job:' .. id, 'order', 'owner', 'type', 'status'"""
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
return {go_on, found, gone}"""
)

# KEYS: what is due in the lane, the job. ARGV: until, how many to pass over, how many to look at.
# Answers with how many it looked at, and how many of them came before the job.
COUNT = Script(
    """#!lua flags=no-writes
local mine = redis.call('HGET', KEYS[2], 'order')
if not mine then
  return {0, 0}
end
local range = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', ARGV[2], ARGV[3])
local before = 0
for _, member in ipairs(range) do
  if string.sub(member, 1, 16) < mine then
    before = before + 1
  end
end
return {#range, before}"""
)
