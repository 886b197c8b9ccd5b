-- Keeps a flow: 0 where it is kept, 1 where there are as many flows as may be, 2 where there is one of this id.
-- KEYS: the flow, all flows, the user's flows, the sequence.
-- ARGV: now, expires_at, limit of the user, limit in all, id, the prefix of flows' keys, context, sealed, tombstone.
--
-- Both sets of flows are sorted by expiry. A member is a sequence number of 16 digits, which puts flows that
-- expire together in the order in which they came, and the flow's id.
local flow, in_all, of_user = KEYS[1], KEYS[2], KEYS[3]
local now, expires_at = tonumber(ARGV[1]), tonumber(ARGV[2])

local there = redis.call('HGET', flow, 'expires_at')
if there and tonumber(there) > now then
    return 2
end
redis.call('DEL', flow)
if expires_at <= now then
    return 0
end

-- What expired does not count, and goes; of all users' only so much that no call takes long.
redis.call('ZREMRANGEBYSCORE', of_user, '-inf', now)
local expired = redis.call('ZRANGEBYSCORE', in_all, '-inf', now, 'LIMIT', 0, 100)
if #expired > 0 then
    redis.call('ZREM', in_all, unpack(expired))
end

local surplus = math.max(0, redis.call('ZCARD', of_user) + 1 - math.max(1, tonumber(ARGV[3])))
if redis.call('ZCOUNT', in_all, '(' .. ARGV[1], '+inf') - surplus >= tonumber(ARGV[4]) then
    return 1
end
if surplus > 0 then
    for _, member in ipairs(redis.call('ZRANGE', of_user, 0, surplus - 1)) do
        redis.call('DEL', ARGV[6] .. string.sub(member, 17))
        redis.call('ZREM', of_user, member)
        redis.call('ZREM', in_all, member)
    end
end

local member = string.format('%016.0f', redis.call('INCR', KEYS[4])) .. ARGV[5]
redis.call('HSET', flow, 'expires_at', ARGV[2], 'context', ARGV[7], 'sealed', ARGV[8], 'tombstone', ARGV[9])
-- By how long it lives, not by when it ends: Redis's clock need not be right.
redis.call('EXPIRE', flow, expires_at - now)
for _, set in ipairs({in_all, of_user}) do
    redis.call('ZADD', set, ARGV[2], member)
    local last = redis.call('ZREVRANGE', set, 0, 0, 'WITHSCORES')
    redis.call('EXPIRE', set, tonumber(last[2]) - now)
end
return 0
