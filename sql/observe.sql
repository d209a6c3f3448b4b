-- First step of the finish: what was seen of the end, and the tail of the log, made durable before the container goes. Takes or
-- keeps the lease under a new epoch.
-- $1 id, $2 epoch, $3 replica, $4 lease of a stop in seconds, $5 state, $6 reason, $7 exit code, $8 OOM-killed, $9 error,
-- $10 tail or null, $11 whether there was more, $12 now, $13 how many seconds ago its process was known to be dead, or null.
-- A null reason keeps the one that was decided.
-- No row: somebody else is at it, or it was seen before; drop the work.
with seen as (
    update sundown.agent_live l
       set ended_state = $5, ended_reason = coalesce($6, l.reason), exit_code = $7, oom_killed = $8, error = coalesce($9, l.error),
           observed_at = coalesce($12, statement_timestamp()), dead_at = coalesce($12, statement_timestamp()) - make_interval(secs => $13),
           leased_by = $3, epoch = l.epoch + 1, attempts = 1,
           due_at = coalesce($12, statement_timestamp()) + make_interval(secs => $4)
     where l.id = $1 and l.epoch = $2 and l.observed_at is null
    returning l.id, l.epoch, l.observed_at
), log as (
    insert into sundown.agent_log (id, tail, truncated, taken_at)
    select s.id, $10::bytea, $11, s.observed_at from seen s where $10 is not null
    on conflict (id) do nothing
)
select s.epoch from seen s
