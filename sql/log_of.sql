-- Where the output of an agent is: on a host while it lives, in agent_log after. $1 id. No locks. No row: unknown.
select l.host, l.container_id, o.id is not null as ended, g.tail, g.truncated
  from sundown.agent a
  left join sundown.agent_live l on l.id = a.id
  left join sundown.agent_outcome o on o.id = a.id
  left join sundown.agent_log g on g.id = a.id
 where a.id = $1
