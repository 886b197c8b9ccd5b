-- Puts a token in the place of one that is there; 0 where there is none.
-- KEYS: the token. ARGV: sealed.
if redis.call('EXISTS', KEYS[1]) == 0 then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
