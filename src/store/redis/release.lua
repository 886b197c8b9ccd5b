-- Gives a claim up that this holder has.
-- KEYS: the claim. ARGV: the holder.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 0
