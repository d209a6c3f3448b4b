-- Where the output of an agent is: on a host while it lives, in agent_log after. $1 id. No locks. Always one row, which says whether the agent is
-- known at all.
select a.id is not null as known, l.host, l.container_id, o.id is not null as ended, g.tail, g.truncated
  from (select $1::uuid as id) asked
  left join sundown.agent a on a.id = asked.id
  left join sundown.agent_live l on l.id = a.id
  left join sundown.agent_outcome o on o.id = a.id
  left join sundown.agent_log g on g.id = a.id
