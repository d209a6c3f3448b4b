-- Last step of the finish: outcomes from the observed facts, live rows and secrets gone, slots free, at once.
-- $1 ids, $2 their epochs, $3 now, $4 the longest wait for a lock. Locks the rows in order of id, then the slots in order of host.
-- An id that does not come back: its lease was lost, or it has ended; drop the work. With those that reached their deadline comes by how many
-- seconds after it their end was decided, they were known to be dead, and that was confirmed.
with patience as materialized (
    select set_config('lock_timeout', $4, true)
), held as materialized (
    select l.id, l.host
      from patience
     cross join unnest($1::uuid[], $2::int4[]) k (id, epoch)
      join sundown.agent_live l on l.id = k.id and l.epoch = k.epoch
     where l.observed_at is not null
     order by l.id
       for update of l
), gone as (
    delete from sundown.agent_live l where l.id = any (array(select h.id from held h))
    returning l.id, l.ended_state, l.ended_reason, l.actor, l.host, l.container_id, l.exit_code, l.oom_killed, l.error, l.ttl, l.attempts, l.epoch,
              l.expires_at, l.placed_at, l.started_at, l.decided_at, l.signalled_at, l.killed_at, l.observed_at, l.dead_at
), secret as (
    delete from sundown.agent_secret s where s.id = any (array(select h.id from held h))
), slots as materialized (
    select s.host from sundown.host_slot s where s.host = any (array(select h.host from held h)) order by s.host for update
), freed as (
    update sundown.host_slot s set used = s.used - g.ended
      from (select g.host, count(*) as ended from gone g group by g.host) g
     where s.host = g.host and s.host = any (array(select l.host from slots l))
)
insert into sundown.agent_outcome (id, state, reason, actor, host, container_id, exit_code, oom_killed, error, ttl, attempts, epoch, expires_at, placed_at,
                                   started_at, decided_at, signalled_at, killed_at, observed_at, dead_at, finished_at)
select g.id, g.ended_state, g.ended_reason, g.actor, g.host, g.container_id, g.exit_code, g.oom_killed, g.error, g.ttl, g.attempts, g.epoch, g.expires_at,
       g.placed_at, g.started_at, g.decided_at, g.signalled_at, g.killed_at, g.observed_at, g.dead_at, coalesce($3, statement_timestamp())
  from gone g
returning id, epoch, case when reason = 'ttl_expired' then extract(epoch from decided_at - expires_at)::float8 end as decision,
          case when reason = 'ttl_expired' then extract(epoch from dead_at - expires_at)::float8 end as dead,
          case when reason = 'ttl_expired' then extract(epoch from observed_at - expires_at)::float8 end as confirmed
