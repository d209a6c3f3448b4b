-- The stop signal was sent: nobody is needed until the grace is over, so no worker waits.
-- $1 id, $2 epoch, $3 now. No row: the lease was lost; nothing to give back.
update sundown.agent_live l set leased_by = null, due_at = l.signalled_at + l.grace
 where l.id = $1 and l.epoch = $2 and l.state = 'terminating' and l.observed_at is null
returning extract(epoch from l.due_at - coalesce($3, statement_timestamp()))::float8 as due_in
