-- A route's registrations, or nothing.
-- KEYS: the registrations.
return redis.call('GET', KEYS[1])
