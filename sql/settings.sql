-- Writes what this start was told about defaults and retention; null leaves a setting as it is.
-- $1 default ttl, $2 max ttl, $3 retention, $4 log retention, all seconds. Locks the one row. No row: nothing changed.
update sundown.installation i
   set default_ttl   = coalesce(make_interval(secs => $1), least(i.default_ttl, make_interval(secs => $2)), i.default_ttl),
       max_ttl       = coalesce(make_interval(secs => $2), i.max_ttl),
       retention     = coalesce(make_interval(secs => $3), i.retention),
       log_retention = coalesce(make_interval(secs => $4), i.log_retention)
 where (make_interval(secs => $1), make_interval(secs => $2), make_interval(secs => $3), make_interval(secs => $4))
       is distinct from (null::interval, null::interval, null::interval, null::interval)
returning extract(epoch from i.default_ttl)::float8 as default_ttl, extract(epoch from i.max_ttl)::float8 as max_ttl
