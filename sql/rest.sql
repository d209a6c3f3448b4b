-- Nothing is to be done before its deadline: gives the lease back until then.
-- $1 id, $2 epoch. No row: the lease was lost, or it does not run.
update sundown.agent_live l set leased_by = null, attempts = 0, due_at = l.expires_at
 where l.id = $1 and l.epoch = $2 and l.state = 'running' and l.observed_at is null
returning l.id
