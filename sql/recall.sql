-- After the database's clock was set back: brings near what waits for an instant that was near once. What is in hand is never due later
-- than its start or its grace is over, nor is anything else that does not simply run, but for 20 s, longer than any pause after a failure; no
-- step was taken, and nobody was submitted, in the future. A lease begins anew, so that nobody meets its holder; so does a grace.
-- $1 lease of a start and $2 of a stop in seconds, $3 now. Walks all that live. Locks what it finds, skipping what others hold. Returns how
-- many: in health, none.
with instant as (
    select coalesce($3::timestamptz, statement_timestamp()) as now, coalesce($3, statement_timestamp()) + interval '20 s' as near
), held as materialized (
    select l.id, case l.state when 'pending' then least(make_interval(secs => $1), l.start_timeout) else make_interval(secs => $2) end as lease
      from sundown.agent_live l
     where l.host > 0 and l.due_at > (select i.near from instant i) and (l.state <> 'running' or l.observed_at is not null)
       and (l.observed_at is not null
            or case l.state when 'pending' then l.placed_at else l.signalled_at end > (select i.near from instant i)
            or l.due_at - interval '20 s' > greatest((select i.now from instant i), case l.state when 'pending' then l.placed_at + l.start_timeout else l.signalled_at + l.grace end))
     order by l.id
       for update skip locked
), waits as materialized (
    select l.id, greatest((select i.now from instant i), a.run_at) as due_at, a.queue_timeout
      from sundown.agent_live l
      join sundown.agent a on a.id = l.id
     where l.host = 0 and l.id > sundown.uuid_floor((select i.near from instant i)) and l.due_at > greatest((select i.now from instant i), a.run_at)
     order by l.id
       for update of l skip locked
), recalled as (
    update sundown.agent_live l
       set due_at = n.due_at, queue_until = coalesce(n.queue_until, l.queue_until),
           placed_at = case when l.placed_at > i.now then i.now else l.placed_at end,
           signalled_at = case when l.signalled_at > i.now then i.now else l.signalled_at end
      from instant i, (select h.id, (select i.now from instant i) + h.lease as due_at, null::timestamptz as queue_until from held h
                        union all
                       select w.id, w.due_at, w.due_at + w.queue_timeout from waits w) n
     where l.id = n.id
    returning l.id
)
select count(*) as recalled from recalled
