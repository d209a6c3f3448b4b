-- The rows of one host that have a container and no end yet, for its keeper to hold against the daemon's list; read before that
-- list is asked for. $1 host, $2 only these agents, or null for all. No locks. No row: nothing of that kind lives there.
select l.id, l.epoch, l.host, l.state, l.container_id, l.attempts, l.started_at is not null as started,
       l.signalled_at is not null as signalled, l.killed_at is not null as killed, l.observed_at is not null as observed,
       extract(epoch from l.grace)::float8 as grace, 0::float8 as lease, false as start_timed_out, false as grace_over, l.leased_by is not null as leased
  from sundown.agent_live l
 where l.host = $1 and l.observed_at is null and ($2::uuid[] is null or l.id = any ($2))
