-- Takes a flow: {0} where there is none, {1} where the context is another, {2, tombstone} where it was taken before,
-- {3, sealed} where it is taken now.
-- KEYS: the flow. ARGV: now, context.
local flow = redis.call('HMGET', KEYS[1], 'expires_at', 'context', 'tombstone', 'sealed')
local expires_at, context, tombstone, sealed = unpack(flow)
if not expires_at or tonumber(expires_at) <= tonumber(ARGV[1]) then
    return {0, ''}
end
if context ~= ARGV[2] then
    return {1, ''}
end
if not sealed then
    return {2, tombstone}
end
redis.call('HDEL', KEYS[1], 'sealed')
return {3, sealed}
