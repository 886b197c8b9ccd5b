-- The token that a route points at, and the mark of the route: {name, sealed, until when}, or nothing.
-- KEYS: the route, the mark. ARGV: the prefix of tokens' keys.
local name = redis.call('GET', KEYS[1])
local sealed = name and redis.call('GET', ARGV[1] .. name)
return sealed and {name, sealed, redis.call('GET', KEYS[2])} or false
