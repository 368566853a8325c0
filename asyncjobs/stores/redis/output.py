"""The scripts that append to and read the output of jobs, with their arguments and answers.

See `scripts` for the keys, and for what all scripts have in common. `APPEND` reads all keys of an
append before it writes the first one: while a cluster migrates the slot, it stops before the writes
if one of the keys has moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from asyncjobs.core.output import (
    MAX_STREAMS,
    Append,
    Appended,
    Chunk,
    OutputPart,
    Refusal,
    StreamInfo,
    StreamKind,
)
from asyncjobs.stores.redis.scripts import PUBLISH, Argument, Script

# KEYS: for each append: the job, its output. ARGV: prefix, writer, then for each append: id,
#       stream, kind, epoch, items, units, position or '', most items, most bytes, data.
# Returns for each append the new end, and the reason why it was refused or ''.
APPEND = Script(
    """#!lua
local prefix, at = ARGV[1], 3
local answers, changed, refusals = {}, {}, {}
for place = 1, #KEYS, 2 do
  local job, output = KEYS[place], KEYS[place + 1]
  local id, name, kind, epoch, items, units, position, most_items, most_bytes, data =
    unpack(ARGV, at, at + 9)
  local chunks, reached = output .. ':' .. name, 0
  local refusal = refusals[chunks]
  if not refusal then
    epoch, items, units = tonumber(epoch), tonumber(items), tonumber(units)
    local status = redis.call('HGET', job, 'status')
    local found = redis.call('HMGET', output, 'epoch', 'items', 'bytes', 'streams',
      'kind:' .. name, 'items:' .. name, 'bytes:' .. name)
    redis.call('EXISTS', chunks)
    local known = found[5]
    local all_items, all_bytes, streams, its_items, its_bytes =
      tonumber(found[2] or 0) + items, tonumber(found[3] or 0) + #data, tonumber(found[4] or 0),
      tonumber(found[6] or 0), tonumber(found[7] or 0)
    reached = known == 'json' and its_items or its_bytes
    if not status then
      refusal = 'gone'
    elseif status ~= 'processing' then
      refusal = 'ended'
    elseif epoch < tonumber(found[1] or 0) then
      refusal = 'stale'
    elseif known and known ~= kind then
      refusal = 'kind'
    elseif units > 0 and position ~= '' and tonumber(position) ~= reached then
      reached = tonumber(position) + units
      local chunk = redis.call('XRANGE', chunks, '(' .. position, '+', 'COUNT', 1)[1]
      if not chunk or chunk[1] ~= string.format('%.0f-0', reached)
          or tonumber(chunk[2][2]) ~= units or tonumber(chunk[2][4]) ~= epoch
          or chunk[2][6] ~= data then
        refusal = 'moved'
      end
    elseif all_items > tonumber(most_items) or all_bytes > tonumber(most_bytes)
        or (not known and streams >= """
    + str(MAX_STREAMS)
    + """) then
      refusal = 'full'
    else
      reached = reached + units
      if not found[1] then
        redis.call('HSET', job, 'output', '1')
      end
      if units > 0 then
        redis.call('XADD', chunks, string.format('%.0f-0', reached),
          'units', units, 'epoch', epoch, 'data', data)
      end
      redis.call('HSET', output, 'epoch', epoch, 'items', all_items, 'bytes', all_bytes,
        'streams', known and streams or streams + 1, 'kind:' .. name, kind,
        'items:' .. name, its_items + items, 'bytes:' .. name, its_bytes + #data,
        'epoch:' .. name, epoch)
      changed[#changed + 1] = id
    end
    refusals[chunks] = refusal
  end
  answers[#answers + 1] = {reached, refusal or ''}
  at = at + 10
end
"""
    + PUBLISH
    + "return answers"
)

# KEYS: the job, its output. ARGV: epoch.
# The few bytes are added even if memory is full. They expire with a job that has ended.
BEGIN_EPOCH = Script(
    """#!lua flags=allow-oom
if redis.call('EXISTS', KEYS[1]) == 1 then
  local epoch = redis.call('HGET', KEYS[2], 'epoch')
  if not epoch then
    redis.call('HSET', KEYS[1], 'output', '1')
  end
  if tonumber(epoch or 0) < tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[2], 'epoch', ARGV[1])
  end
  local ends = redis.call('PEXPIRETIME', KEYS[1])
  if ends > 0 then
    redis.call('PEXPIREAT', KEYS[2], ends)
  end
end"""
)

# KEYS: the output of each job. ARGV: for each read: stream, position, most bytes.
# Returns for each read nothing if there is no such stream; else its kind, items, bytes and epoch,
# and then chunks: the position after each, its units, epoch and data. Entries are read one by one
# if they are large, since each is copied even if it does not fit.
READ = Script(
    """#!lua flags=no-writes
local answers = {}
for place, output in ipairs(KEYS) do
  local name, position, most =
    ARGV[3 * place - 2], tonumber(ARGV[3 * place - 1]), tonumber(ARGV[3 * place])
  local found = redis.call('HMGET', output, 'kind:' .. name, 'items:' .. name, 'bytes:' .. name,
    'epoch:' .. name)
  local answer = found[1] and found or {}
  local reached = tonumber(found[1] == 'json' and found[2] or found[3] or 0)
  local size, number, room = 0, 0, 1
  while found[1] and position < reached and room > 0 do
    local entries = redis.call('XRANGE', output .. ':' .. name,
      '(' .. string.format('%.0f', position), '+', 'COUNT', room)
    if #entries < room then
      position = reached
    end
    for _, entry in ipairs(entries) do
      local data = entry[2][6]
      size = size + #data
      if number > 0 and size > most then
        position = reached
        break
      end
      number = number + 1
      local last = string.match(entry[1], '^%d+')
      for _, value in ipairs({last, entry[2][2], entry[2][4], data}) do
        answer[#answer + 1] = value
      end
      position = math.max(position, tonumber(last))
      local more = math.floor((most - size) / math.max(#data, 1))
      room = size < most and math.max(1, math.min(64, more)) or 0
    end
  end
  answers[place] = answer
end
return answers"""
)


def append(one: Append) -> list[Argument]:
    """Return the arguments with which `APPEND` adds a chunk."""
    position = "" if one.position is None else one.position
    sizes: list[Argument] = [one.epoch, one.items, one.units, position]
    return [one.job_id, one.stream, one.kind, *sizes, one.max_items, one.max_bytes, one.data]


def appended(answer: Sequence[Any]) -> Appended:
    """Decode an answer of `APPEND`."""
    end, refusal = answer
    return Appended(refusal=Refusal(refusal.decode())) if refusal else Appended(int(end))


def part(answer: Sequence[bytes]) -> OutputPart | None:
    """Decode an answer of `READ`."""
    if not answer:
        return None
    kind, items, size, epoch, *rest = answer
    chunks: list[Chunk] = []
    for place in range(0, len(rest), 4):
        end, units = int(rest[place]), int(rest[place + 1])
        chunks.append(Chunk(end - units, units, int(rest[place + 2]), rest[place + 3]))
    known = StreamKind(kind.decode())
    end = int(items if known is StreamKind.JSON else size)
    return OutputPart(known, tuple(chunks), end, int(epoch))


def streams_in(values: Mapping[bytes, bytes]) -> list[StreamInfo]:
    """Decode the hash of a job's output."""
    names = [field[5:] for field in values if field.startswith(b"kind:")]
    found = [
        StreamInfo(
            name.decode(),
            StreamKind(values[b"kind:" + name].decode()),
            *(int(values[part + name]) for part in (b"items:", b"bytes:", b"epoch:")),
        )
        for name in names
    ]
    return sorted(found, key=attrgetter("name"))
