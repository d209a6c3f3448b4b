-- Moves a deadline to now + ttl. $1 id, $2 seconds. Locks its row. Raises SD400, SD404, SD409. Our own notifier tells the other replicas.
select extract(epoch from sundown.extend(id => $1, ttl => make_interval(secs => $2), notify => 'never') - statement_timestamp())::float8 as due_in
