-- Gives a lease back after a failed try: somebody looks again then.
-- $1 id, $2 epoch, $3 seconds from now, $4 what went wrong, $5 now. No row: the lease was lost; nothing to give back.
update sundown.agent_live l
   set leased_by = null, error = coalesce($4, l.error),
       due_at = case when l.state = 'running' and l.observed_at is null then least(l.expires_at, coalesce($5, statement_timestamp()) + make_interval(secs => $3))
                     -- A signal that failed is tried again, and does not put off SIGKILL, nor does a look before it.
                     else least(coalesce($5, statement_timestamp()) + make_interval(secs => $3),
                                case when l.killed_at is null then l.signalled_at + l.grace end,
                                case when l.signalled_at is null and l.observed_at is null and l.decided_at + l.grace > coalesce($5, statement_timestamp())
                                     then l.decided_at + l.grace end) end
 where l.id = $1 and l.epoch = $2
returning l.id
