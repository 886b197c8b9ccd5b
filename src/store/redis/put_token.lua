-- KEYS: the token, the route. ARGV: the token's name, sealed.
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[1])
return 0
