-- Puts a token in the place of the one that was read; 0 where that is not there any more.
-- KEYS: the token. ARGV: sealed as it was read, sealed anew.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
