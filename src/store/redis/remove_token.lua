-- KEYS: the token, the route. ARGV: the token's name, sealed as it was read or nothing.
if ARGV[2] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
end
redis.call('DEL', KEYS[1])
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('DEL', KEYS[2])
end
return 0
