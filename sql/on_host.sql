-- The rows of one host that nobody is at, for its keeper to hold against the daemon's list; read before that list is asked for.
-- $1 host. No locks. No row: nothing lives there, or all of it is in somebody's hands.
select l.id, l.epoch, l.host, l.state, l.reason, l.container_id, l.attempts, l.started_at is not null as started,
       l.signalled_at is not null as signalled, l.killed_at is not null as killed, l.observed_at is not null as observed,
       extract(epoch from l.grace)::float8 as grace, false as start_timed_out
  from sundown.agent_live l
 where l.host = $1 and l.leased_by is null and l.container_id is not null and l.observed_at is null
