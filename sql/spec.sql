-- What is needed to create the container of an agent whose start was taken over.
-- $1 id. No locks. No row: it has ended, or its partition is gone.
select a.id, a.image, a.command, a.labels, a.cpus::float8, a.memory, a.pids, a.network, e.env,
       extract(epoch from l.max_ttl)::float8 as max_ttl, extract(epoch from l.start_timeout)::float8 as start_timeout,
       extract(epoch from l.grace)::float8 as grace, sundown.instant(l.placed_at + l.ttl) as first_deadline
  from sundown.agent_live l
  join sundown.agent a on a.id = l.id
  left join sundown.agent_secret e on e.id = l.id
 where l.id = $1
