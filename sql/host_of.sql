-- Whose agents a daemon runs, to know it again when it has lost the volume that says who it is.
-- $1 agents and $2 containers that it lists. No locks. No row: nobody's that we know.
select h.uuid from sundown.agent_live l
  join sundown.host h on h.id = l.host
 where l.id = any ($1) and l.container_id = any ($2)
 group by h.uuid order by count(*) desc limit 1
