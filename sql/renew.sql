-- Holds on to a lease while a call to Docker takes its time. Never shortens one that was backed off.
-- $1 id, $2 epoch, $3 replica, $4 seconds from now, $5 now. No row: the lease was lost; drop the work.
update sundown.agent_live l set due_at = greatest(l.due_at, coalesce($5, statement_timestamp()) + make_interval(secs => $4))
 where l.id = $1 and l.epoch = $2 and l.leased_by = $3
returning l.id
