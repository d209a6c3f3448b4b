-- The stop signal was sent: nobody is needed until the grace is over, so no worker waits.
-- $1 ids, $2 their epochs, $3 now, $4 the longest wait for a lock. Locks the rows in order of id. An id that does not come back: its lease
-- was lost; nothing to give back.
with patience as materialized (
    select set_config('lock_timeout', $4, true)
), held as materialized (
    select l.id
      from patience
     cross join unnest($1::uuid[], $2::int4[]) k (id, epoch)
      join sundown.agent_live l on l.id = k.id and l.epoch = k.epoch
     where l.state = 'terminating' and l.observed_at is null
     order by l.id
       for update of l
)
update sundown.agent_live l set leased_by = null, due_at = l.signalled_at + l.grace from held h where l.id = h.id
returning l.id, l.epoch, extract(epoch from l.due_at - coalesce($3, statement_timestamp()))::float8 as due_in
