-- The stop signal is about to be sent: the intent, before the act. With no grace it is SIGKILL at once.
-- $1 id, $2 epoch, $3 lease of a stop in seconds, $4 now. No row: the lease was lost; drop the work.
update sundown.agent_live l
   set signalled_at = coalesce(l.signalled_at, $4, statement_timestamp()), attempts = 0,
       killed_at = case when l.grace = interval '0' then coalesce(l.killed_at, $4, statement_timestamp()) else l.killed_at end,
       due_at = case when l.grace = interval '0' then coalesce($4, statement_timestamp()) + make_interval(secs => $3)
                     else least(coalesce(l.signalled_at, $4, statement_timestamp()) + l.grace, coalesce($4, statement_timestamp()) + make_interval(secs => $3)) end
 where l.id = $1 and l.epoch = $2 and l.state = 'terminating' and l.observed_at is null
returning l.killed_at is not null as kill
