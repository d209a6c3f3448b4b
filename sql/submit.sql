-- Submits one agent; parameters as sundown.submit, durations in seconds. Returns its id and our transaction, by which accepted.sql
-- tells a new agent from one that an earlier request under the same key made.
-- Waits for another submission under its key as terminate does for a row. Raises SD400, SD409 with the stable code as the constraint's
-- name, 55P03. Our own notifier tells the other replicas.
with patience as materialized (select set_config('lock_timeout', '500ms', true))
select sundown.submit(image => $1, command => $2, ttl => make_interval(secs => $3), max_ttl => make_interval(secs => $4),
                      grace => make_interval(secs => $5), name => $6, labels => $7, env => $8, cpus => coalesce($9::numeric, 1),
                      memory => coalesce($10, 268435456), pids => coalesce($11, 128), network => coalesce($12, 'none'),
                      run_at => $13::timestamptz, start_timeout => make_interval(secs => $14),
                      queue_timeout => make_interval(secs => $15), key => $16, notify => 'never') as id,
       pg_current_xact_id()::text as xid
  from patience
