-- First step of the finish: what was seen of each end, and the tail of the log, made durable before the container goes. Takes or keeps the
-- lease under a new epoch.
-- $1 ids, $2 their epochs, then of each: $3 replica, $4 lease of a stop in seconds, $5 state, $6 reason, $7 exit code, $8 OOM-killed,
-- $9 error, $10 tail or null, $11 whether there was more, $12 how many seconds ago its process was known to be dead, or null; $13 now, $14 the longest wait for a lock. A null reason keeps the one that was
-- decided. Locks the rows in order of id. An id that does not come back: somebody else is at it, or it was seen before; drop the work.
with patience as materialized (
    select set_config('lock_timeout', $14, true)
), held as materialized (
    select l.id, k.replica, make_interval(secs => k.lease) as lease, k.state, k.reason, k.exit_code, k.oom_killed, k.error, k.tail, k.truncated, make_interval(secs => k.dead_ago) as dead_ago
      from patience
     cross join unnest($1::uuid[], $2::int4[], $3::int4[], $4::float8[], $5::text[], $6::text[], $7::int4[], $8::bool[], $9::text[], $10::bytea[],
                       $11::bool[], $12::float8[])
                k (id, epoch, replica, lease, state, reason, exit_code, oom_killed, error, tail, truncated, dead_ago)
      join sundown.agent_live l on l.id = k.id and l.epoch = k.epoch
     where l.observed_at is null
     order by l.id
       for update of l
), seen as (
    update sundown.agent_live l
       set ended_state = h.state, ended_reason = coalesce(h.reason, l.reason), exit_code = h.exit_code, oom_killed = h.oom_killed,
           error = coalesce(h.error, l.error), observed_at = coalesce($13, statement_timestamp()), dead_at = coalesce($13, statement_timestamp()) - h.dead_ago, leased_by = h.replica, epoch = l.epoch + 1, attempts = 1,
           due_at = coalesce($13, statement_timestamp()) + h.lease
      from held h
     where l.id = h.id
    returning l.id, l.epoch, l.observed_at, h.tail, h.truncated
), log as (
    insert into sundown.agent_log (id, tail, truncated, taken_at)
    select s.id, s.tail, s.truncated, s.observed_at from seen s where s.tail is not null
    on conflict (id) do nothing
)
select s.id, s.epoch from seen s
