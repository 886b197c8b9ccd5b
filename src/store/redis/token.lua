-- The token that a route points at: {name, sealed}, or nothing.
-- KEYS: the route. ARGV: the prefix of tokens' keys.
local name = redis.call('GET', KEYS[1])
local sealed = name and redis.call('GET', ARGV[1] .. name)
return sealed and {name, sealed} or false
