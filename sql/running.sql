-- Their containers run: the ttl begins. Tightens each provisional deadline, never moves it out, and returns the lease.
-- $1 ids, $2 their epochs, $3 now, $4 the longest wait for a lock. Locks the rows in order of id. An id that does not come back: its
-- lease was lost or an end was asked for; drop the work.
with patience as materialized (
    select set_config('lock_timeout', $4, true)
), held as materialized (
    select l.id
      from patience
     cross join unnest($1::uuid[], $2::int4[]) k (id, epoch)
      join sundown.agent_live l on l.id = k.id and l.epoch = k.epoch
     where l.state = 'pending' and l.observed_at is null
     order by l.id
       for update of l
)
update sundown.agent_live l
   set state = 'running', started_at = coalesce($3, statement_timestamp()), leased_by = null, attempts = 0, error = null,
       expires_at = least(l.expires_at, coalesce($3, statement_timestamp()) + l.ttl),
       due_at     = least(l.expires_at, coalesce($3, statement_timestamp()) + l.ttl)
  from held h
 where l.id = h.id
returning l.id, l.epoch, extract(epoch from l.due_at - coalesce($3, statement_timestamp()))::float8 as due_in
