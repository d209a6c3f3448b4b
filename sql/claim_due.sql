-- Claims what is due on the hosts that this replica serves: deadlines, next steps of stops, leases whose holders died. A deadline
-- that has passed becomes the decision to end the agent in the same statement, and so does the intent of SIGKILL when the grace is over.
-- $1 hosts, $2 lag of each in seconds (0 for its keeper), $3 replica, $4 low watermark or null, $5 lease of a start and $6 of a stop
-- in seconds, $7 now. Locks at most 100 rows a host, skipping what others hold. No row: nothing is due, or others have it.
with due as materialized (
    select d.id
      from unnest($1::int4[], $2::float8[]) h (host, lag)
     cross join lateral (
           select l.id from sundown.agent_live l
            where l.host = h.host
              and l.due_at <= coalesce($7, statement_timestamp()) - make_interval(secs => h.lag)
              and l.due_at >= coalesce($4::timestamptz, '-infinity')
            order by l.due_at, l.id limit 100
              for update skip locked) d
)
update sundown.agent_live l
   set epoch = l.epoch + 1,
       leased_by = $3,
       attempts = l.attempts + case when l.attempts < 30000 then 1 else 0 end,
       state = case when l.state = 'running' and l.observed_at is null and l.expires_at <= coalesce($7, statement_timestamp()) then 'terminating' else l.state end,
       reason = case when l.state = 'running' and l.observed_at is null and l.expires_at <= coalesce($7, statement_timestamp()) then 'ttl_expired' else l.reason end,
       actor = case when l.state = 'running' and l.observed_at is null and l.expires_at <= coalesce($7, statement_timestamp()) then 'sundown' else l.actor end,
       decided_at = case when l.state = 'running' and l.observed_at is null and l.expires_at <= coalesce($7, statement_timestamp()) then coalesce($7, statement_timestamp()) else l.decided_at end,
       killed_at = case when l.killed_at is null and l.signalled_at + l.grace <= coalesce($7, statement_timestamp()) then coalesce($7, statement_timestamp()) else l.killed_at end,
       due_at = coalesce($7, statement_timestamp())
              + case when l.state = 'pending' and l.placed_at + l.start_timeout > coalesce($7, statement_timestamp())
                     then least(make_interval(secs => $5), greatest(l.placed_at + l.start_timeout - coalesce($7, statement_timestamp()), interval '1 s'))
                     -- A stop whose tries never come back is tried ever more slowly, but for ever, and at the instant of SIGKILL. One that was
                     -- given back had its pause: whoever takes it now may die like anybody else.
                     else least(make_interval(secs => $6 * 2 ^ case when l.leased_by is null then 0 else least(l.attempts, 3) end), greatest(interval '15 s', make_interval(secs => $6)),
                                case when l.signalled_at is null and l.observed_at is null and l.decided_at + l.grace > coalesce($7, statement_timestamp())
                                     then l.decided_at + l.grace - coalesce($7, statement_timestamp()) end) end
 where l.id = any (array(select d.id from due d))
returning l.id, l.epoch, l.host, l.state, l.container_id, l.attempts, l.started_at is not null as started,
          l.signalled_at is not null as signalled, l.killed_at is not null as killed, l.observed_at is not null as observed,
          extract(epoch from l.grace)::float8 as grace, extract(epoch from l.due_at - coalesce($7, statement_timestamp()))::float8 as lease,
          l.state = 'pending' and l.placed_at + l.start_timeout <= coalesce($7, statement_timestamp()) as start_timed_out,
          coalesce(l.decided_at + l.grace <= coalesce($7, statement_timestamp()), false) as grace_over
