-- The one thing that an idle replica does: it says that it is alive, takes or renews the keeping of its hosts, and asks when it is
-- needed next. Host 0 is the line of those who wait.
-- $1 replica, $2 hosts within reach, $3 keeper's lease in seconds, $4 whether notifications reach it, $5 low watermark or null, $6 now.
-- Locks its replica's row and its hosts' keeper rows. Returns a row for each host and for 0. alive = false: register again.
with instant as (
    -- A lost beat is no loss: it need not wait for the disk.
    select coalesce($6, statement_timestamp()) as now, set_config('synchronous_commit', 'off', true) as relaxed
), beat as (
    update sundown.replica r set seen_at = i.now, hosts = $2, listening = $4 from instant i where r.id = $1 returning r.id
), kept as (
    insert into sundown.keeper as k (host, replica, until)
    select h, $1, i.now + make_interval(secs => $3) from unnest($2::int4[]) h, instant i order by h
    on conflict (host) do update set replica = excluded.replica, until = excluded.until
     where k.replica = excluded.replica or k.until < (select i.now from instant i)
        -- Longer than any lease: the clock was set back.
        or k.until > excluded.until + make_interval(secs => $3)
    returning k.host
), seen as (
    update sundown.host t set seen_at = (select i.now from instant i) where t.id in (select k.host from kept k)
)
select h.host, exists (select from beat) as alive, h.host in (select k.host from kept k) as keeps,
       extract(epoch from d.due_at - i.now)::float8 as due_in,
       extract(epoch from case when h.host = 0 then (
           select l.queue_until from sundown.agent_live l where l.host = 0 and l.queue_until is not null order by l.queue_until limit 1)
           end - i.now)::float8 as impatient_in,
       i.now - interval '10 s' as low
  from instant i
 cross join unnest(0 || $2) h (host)
  left join lateral (
       select l.due_at from sundown.agent_live l
        where l.host = h.host and l.due_at >= case when h.host = 0 then '-infinity' else coalesce($5::timestamptz, '-infinity') end
        order by l.due_at, l.id limit 1) d on true
