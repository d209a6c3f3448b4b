-- Its container runs: the ttl begins. Tightens the provisional deadline, never moves it out, and returns the lease.
-- $1 id, $2 epoch, $3 now. No row: the lease was lost or an end was asked for; drop the work.
update sundown.agent_live l
   set state = 'running', started_at = coalesce($3, statement_timestamp()), leased_by = null, attempts = 0, error = null,
       expires_at = least(l.expires_at, coalesce($3, statement_timestamp()) + l.ttl),
       due_at     = least(l.expires_at, coalesce($3, statement_timestamp()) + l.ttl)
 where l.id = $1 and l.epoch = $2 and l.state = 'pending' and l.observed_at is null
returning extract(epoch from l.due_at - coalesce($3, statement_timestamp()))::float8 as due_in
