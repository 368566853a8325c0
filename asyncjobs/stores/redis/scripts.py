"""The scripts by which the Redis store changes several keys at once.

The scripts are told the keys they can be told. Which lane a job was in, whose it is, and which job
has an idempotency key, only the server knows: the keys of those are made from the prefix, inside
the same hash tag, and so are always on the node that runs the script.

The scripts know no rules of jobs. They keep the indexes in step with the hashes, and compare
revisions. Each begins with a line that makes the server check before the first write whether it may
write at all (memory, replica, disk): a script is done as a whole or not begun. The changes are
published last, by `pcall`: who may not publish may still write.

While a cluster moves the slot key by key, a script may meet a key of its own making that has left
already, and ends there. So entries come before the hash that they stand for, and go after it or
with what can be done again: what is left of a broken script is an entry too many, which `TAKE` and
lists remove when they meet it, and never a job that no index has.
"""

from __future__ import annotations

from asyncjobs.stores.redis.looks import FIELDS, Script

#: How long, after the end of a job's retention, the server waits before it forgets the job by
#: itself. Maintenance comes first wherever there is any, with a clock an hour off, too; it also
#: leaves the indexes clean at once.
_MARGIN_MS = 24 * 60 * 60 * 1000

_READ = "".join(f", '{name}'" for name in FIELDS)

_PUBLISH = """
if #changed > 0 then
  redis.pcall('PUBLISH', prefix .. 'changes', ARGV[2] .. ' ' .. table.concat(changed, ' '))
end
"""

# Sets when the server forgets a job by itself. However long ago its retention ended, what was
# written just now (copied from another store, say) stays for the margin.
_KEEP = f"""
local now
local function keep(job, ends)
  now = now or redis.call('TIME')[1] * 1000
  redis.call('PEXPIREAT', job, math.max(ends, now) + {_MARGIN_MS})
end
"""

# KEYS: sequence, held, all, then each job.
# ARGV: prefix, writer, then for each job: id, lane, due_at, status, type, revision, submission,
#       state, payload, trace, whether it has an idempotency key, owner index, end of retention, the
#       number of further arguments for its hash, and those.
# Answers with an id for each job: '' where it was added, else that of the job that is stored.
INSERT = Script(
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
    if due_at ~= '' then
      redis.call('ZADD', prefix .. 'due:' .. lane, due_at, entry)
    end
    if owned ~= '' then
      redis.call('ZADD', owned, order, id)
    end
    if status == 'completed' then
      redis.call('ZADD', prefix .. 'completed:' .. type, order, id)
    end
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
end
"""
    + _PUBLISH
    + "return answers"
)

# KEYS: the job of each change.
# ARGV: prefix, writer, then for each change: id, expected revision, lane, due_at, status, revision,
#       state, end of retention, the number of further arguments for its hash, and those.
# Answers with 1 or 0 for each change.
_REPLACE = (
    _KEEP
    + """
local prefix, at = ARGV[1], 3
local answers, changed = {}, {}
for place = 1, #KEYS do
  local job = KEYS[place]
  local id, expected, lane, due_at, status, revision, state, ends, size = unpack(ARGV, at, at + 8)
  local found = redis.call('HMGET', job, 'revision', 'lane', 'entry', 'status', 'type')
  local fits = found[1] == expected
  if fits then
    local entry, completed = found[3], prefix .. 'completed:' .. found[5]
    if status == 'completed' and status ~= found[4] then
      redis.call('ZADD', completed, string.sub(entry, 1, 16), id)
    end
    if due_at ~= '' then
      redis.call('ZADD', prefix .. 'due:' .. lane, due_at, entry)
    end
    redis.call('HSET', job, 'lane', lane, 'due_at', due_at, 'status', status,
      'revision', revision, 'state', state, unpack(ARGV, at + 9, at + 8 + size))
    if due_at == '' or lane ~= found[2] then
      redis.call('ZREM', prefix .. 'due:' .. found[2], entry)
    end
    if found[4] == 'completed' and status ~= found[4] then
      redis.call('ZREM', completed, id)
    end
    if ends ~= '' then
      keep(job, ends)
    elseif status ~= found[4] then
      redis.call('PERSIST', job)
    end
    changed[#changed + 1] = id
  end
  answers[#answers + 1] = fits and 1 or 0
  at = at + 9 + size
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

# KEYS: held, all, then what is due in each lane. ARGV: prefix, now, until, most jobs, most bytes.
# Answers with whether there may be more, and with id and fields of each job taken.
# Moving what is there needs no memory: maintenance must not stop where memory is full.
TAKE = Script(
    """#!lua flags=allow-oom
local prefix, now, moved = ARGV[1], ARGV[2], ARGV[3]
local most, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local function clean(id, entry)
  local order, trace = string.sub(entry, 1, 16), string.sub(entry, #id + 18)
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
    bytes = bytes - #(row[5] or '') - #(row[6] or '')
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
DELETE = Script(
    """#!lua flags=allow-oom
local prefix = ARGV[1]
local changed = {}
for place = 3, #KEYS do
  local job, id = KEYS[place], ARGV[place]
  local entry, lane, owner, status, type =
    unpack(redis.call('HMGET', job, 'entry', 'lane', 'owner', 'status', 'type'))
  redis.call('ZREM', KEYS[2], id)
  if entry then
    local trace = string.sub(entry, #id + 18)
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
  redis.call('UNLINK', job)
end
"""
    + _PUBLISH
    + "return #changed"
)
