-- Puts a route's registrations in the place of those that were read; 0 where those are not there any more.
-- KEYS: the registrations. ARGV: sealed as they were read, or nothing; sealed anew.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
