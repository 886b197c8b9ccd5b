-- Stores a token, and gives back the one under another key that the route pointed at, which is forgotten: {name, sealed},
-- or nothing.
-- KEYS: the token, the route. ARGV: the token's name, sealed, the prefix of tokens' keys.
local before = redis.call('GET', KEYS[2])
local replaced = false
if before and before ~= ARGV[1] then
    replaced = redis.call('GET', ARGV[3] .. before)
    redis.call('DEL', ARGV[3] .. before)
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[1])
return replaced and {before, replaced} or false
