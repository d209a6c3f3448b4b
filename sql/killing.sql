-- SIGKILL is about to be sent to a container that no look shows: the intent, before the act. Its stop signal was not sent.
-- $1 id, $2 epoch, $3 lease of a stop in seconds, $4 now. No row: the lease was lost; drop the work.
update sundown.agent_live l
   set killed_at = coalesce(l.killed_at, $4, statement_timestamp()), due_at = coalesce($4, statement_timestamp()) + make_interval(secs => $3)
 where l.id = $1 and l.epoch = $2 and l.state = 'terminating' and l.observed_at is null
returning l.id
