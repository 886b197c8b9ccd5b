-- Claims the right to refresh; 0 where another has it.
-- KEYS: the claim. ARGV: the holder, for how many seconds.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then
    return 1
end
return 0
