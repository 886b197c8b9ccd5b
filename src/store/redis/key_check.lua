-- The check record that is there, or else the one that is offered, which is then there.
-- KEYS: the check record. ARGV: a record; where it is given, the one to put this record in the place of.
local there = redis.call('GET', KEYS[1])
if not there or there == ARGV[2] then
    redis.call('SET', KEYS[1], ARGV[1])
    return ARGV[1]
end
return there
