-- Records the container of an agent, before its start.
-- $1 id, $2 epoch, $3 container. No row: the lease was lost or an end was asked for; drop the work.
update sundown.agent_live l set container_id = $3
 where l.id = $1 and l.epoch = $2 and l.state = 'pending' and (l.container_id is null or l.container_id = $3)
returning l.id
