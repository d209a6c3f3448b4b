-- Moves a deadline to now + ttl. $1 id, $2 seconds. Locks its row, for which it waits as terminate does. Raises SD400, SD404, SD409, 55P03.
-- Our own notifier tells the other replicas.
with patience as materialized (select set_config('lock_timeout', '500ms', true))
select extract(epoch from sundown.extend(id => $1, ttl => make_interval(secs => $2), notify => 'never') - statement_timestamp())::float8 as due_in
  from patience
