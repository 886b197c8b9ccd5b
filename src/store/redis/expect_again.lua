-- Notes until when requests may come again, where the route points at a token, or at what is left of one; 0 where not.
-- KEYS: the mark, the route. ARGV: until when, for how many seconds that is.
if redis.call('EXISTS', KEYS[2]) == 0 then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
