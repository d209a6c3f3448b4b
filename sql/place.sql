-- Places agents that wait, in order of submission, on a host that has room, and leases them for their start.
-- $1 host, $2 replica, $3 at most how many (up to 16), $4 lease in seconds, $5 now.
-- Locks the host's slot and the rows, skipping what others hold, so it never waits. Always at least one row, whose verdict says
-- open, full or locked (try again at once); its id is null when nobody was placed. A host that was forgotten is full.
with slot as materialized (
    select s.host, case when s.cordoned then 0 else greatest(least(s.capacity - s.used, $3), 0) end as free
      from sundown.host_slot s where s.host = $1 for update skip locked
), due as materialized (
    select l.id, l.due_at from sundown.agent_live l
     where l.host = 0 and l.due_at <= coalesce($5, statement_timestamp())
       and (select s.free from slot s) > 0
     order by l.due_at, l.id limit 16
       for update skip locked
), placed as (
    update sundown.agent_live l
       set host = $1, leased_by = $2, epoch = l.epoch + 1, attempts = 1,
           placed_at  = coalesce($5, statement_timestamp()),
           -- Provisional, from before any container exists: whatever dies now, the agent cannot outlive this.
           expires_at = coalesce($5, statement_timestamp()) + l.start_timeout + l.ttl,
           due_at     = coalesce($5, statement_timestamp()) + least(make_interval(secs => $4), l.start_timeout)
     where l.id = any (array(select d.id from due d order by d.due_at, d.id limit (select coalesce(max(s.free), 0) from slot s)))
    returning l.id, l.epoch, l.max_ttl, l.start_timeout, l.grace, l.placed_at + l.ttl as first_deadline
), used as (
    update sundown.host_slot s set used = s.used + (select count(*) from placed) where s.host = $1 and exists (select from placed)
)
select case when (select s.free from slot s) > 0 then 'open'
            when exists (select from slot) or not exists (select from sundown.host_slot s where s.host = $1) then 'full' else 'locked' end as verdict,
       p.id, p.epoch, extract(epoch from p.grace)::float8 as grace,
       a.image, a.command, a.labels, a.cpus::float8, a.memory, a.pids, a.network, e.env,
       extract(epoch from p.max_ttl)::float8 as max_ttl, extract(epoch from p.start_timeout)::float8 as start_timeout,
       sundown.instant(p.first_deadline) as first_deadline
  from (select 1) one
  left join placed p on true
  left join sundown.agent a on a.id = p.id
  left join sundown.agent_secret e on e.id = p.id
 order by p.id
