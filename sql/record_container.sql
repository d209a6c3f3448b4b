-- Records the containers of agents, before their start.
-- $1 ids, $2 their epochs, $3 their containers, $4 the longest wait for a lock. Locks the rows in order of id. An id that does not come
-- back: its lease was lost or an end was asked for; drop the work.
with patience as materialized (
    select set_config('lock_timeout', $4, true)
), held as materialized (
    select l.id, k.container
      from patience
     cross join unnest($1::uuid[], $2::int4[], $3::text[]) k (id, epoch, container)
      join sundown.agent_live l on l.id = k.id and l.epoch = k.epoch
     where l.state = 'pending' and (l.container_id is null or l.container_id = k.container)
     order by l.id
       for update of l
)
update sundown.agent_live l set container_id = h.container from held h where l.id = h.id
returning l.id, l.epoch
