-- Forgets a token that was read; 0 where it is not there any more.
-- KEYS: the token, the route. ARGV: the token's name, sealed as it was read.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
end
redis.call('DEL', KEYS[1])
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('DEL', KEYS[2])
end
return 1
