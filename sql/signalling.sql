-- The stop signal is about to be sent: the intent, before the act. With no grace it is SIGKILL at once.
-- $1 ids, $2 their epochs, $3 the lease of each stop in seconds, $4 now, $5 the longest wait for a lock. Locks the rows in order of id. An id that
-- does not come back: its lease was lost; drop the work.
with patience as materialized (
    select set_config('lock_timeout', $5, true)
), held as materialized (
    select l.id, make_interval(secs => k.lease) as lease
      from patience
     cross join unnest($1::uuid[], $2::int4[], $3::float8[]) k (id, epoch, lease)
      join sundown.agent_live l on l.id = k.id and l.epoch = k.epoch
     where l.state = 'terminating' and l.observed_at is null
     order by l.id
       for update of l
)
update sundown.agent_live l
   set signalled_at = coalesce(l.signalled_at, $4, statement_timestamp()), attempts = 0,
       killed_at = case when l.grace = interval '0' then coalesce(l.killed_at, $4, statement_timestamp()) else l.killed_at end,
       due_at = case when l.grace = interval '0' then coalesce($4, statement_timestamp()) + h.lease
                     else least(coalesce(l.signalled_at, $4, statement_timestamp()) + l.grace, coalesce($4, statement_timestamp()) + h.lease) end
  from held h
 where l.id = h.id
returning l.id, l.epoch, l.killed_at is not null as kill
