"""What a script of the Redis store is, and those that only look: nothing of them is a write.

A replica answers them, too.
"""

from __future__ import annotations

from hashlib import sha1


class Script:
    """A Lua text, and the digest by which a server that has seen it knows it."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


#: What is read of a job, and what of one in a list.
FIELDS = ("submission", "state", "payload", "result", "revision", "lane", "due_at")
NARROW = ("submission", "state", "revision", "lane", "due_at")

_READ_NARROW = "".join(f", '{name}'" for name in NARROW)

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
return {go_on, found, gone}"""
)

# KEYS: what is due in the lane, the job. ARGV: until, how many to pass over, how many to look at.
# Answers with how many it looked at, and how many of them came before the job.
COUNT = Script(
    """#!lua flags=no-writes
local mine = redis.call('HGET', KEYS[2], 'entry')
if not mine then
  return {0, 0}
end
local range = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', ARGV[2], ARGV[3])
local before = 0
for _, member in ipairs(range) do
  if member < mine then
    before = before + 1
  end
end
return {#range, before}"""
)
