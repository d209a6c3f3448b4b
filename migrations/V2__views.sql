-- What people look at. `sundown.agents` is everything about every agent; the others answer one question each.
set local lock_timeout = '5s';

-- Live and ended first, then each one's agent by its key: "the newest fifty", "running now", a page from a cursor and a join by id are
-- walks along an index, however much history there is. The LIMIT keeps it to the key: left to choose, the planner merges or hashes the
-- whole of sundown.agent for a page from a cursor. The price: a query over all of history looks up each agent.
create view sundown.agents as
select s.id, a.name, a.tenant, s.state, s.reason, a.image, a.command, a.labels, s.ttl, a.max_ttl, a.grace, a.run_at, a.created_at, s.started_at,
       s.expires_at, s.finished_at, s.exit_code, s.error, (select h.name from sundown.host h where h.id = s.host) as host, s.container_id,
       s.attempts, a.env_keys
  from (select l.id, l.state, l.reason, l.ttl, l.started_at, l.expires_at, null::timestamptz as finished_at, l.exit_code, l.error, l.host,
               l.container_id, l.attempts
          from sundown.agent_live l
         union all
        select o.id, o.state, o.reason, o.ttl, o.started_at, o.expires_at, o.finished_at, o.exit_code, o.error, o.host,
               o.container_id, o.attempts
          from sundown.agent_outcome o) s
 cross join lateral (
       select a.name, a.tenant, a.image, a.command, a.labels, a.max_ttl, a.grace, a.run_at, a.created_at, a.env_keys
         from sundown.agent a where a.id = s.id limit 1) a;
comment on view sundown.agents is 'Every agent, alive or ended, newest first when ordered by id desc.';

-- Every try pushes due_at forward, so what is tried again and again never looks late by it: what counts is also when it should have been over.
create view sundown.overdue as
select l.id, l.state, l.reason, h.name as host, l.due_at, l.expires_at, l.attempts, l.error,
       statement_timestamp() - least(l.due_at, d.over) as late,
       case when l.killed_at is not null and l.observed_at is null then 'SIGKILL was sent and its container is still there'
            when l.due_at < statement_timestamp() - interval '2 s' then 'nobody has come for it: is its row locked, or every replica of its host away?'
            when l.observed_at is not null then 'its end was seen and its container cannot be removed'
            when l.state = 'pending' then 'its start_timeout is over and its start was not given up'
            else 'its time and its grace are over and it cannot be stopped'
            end as what
  from sundown.agent_live l
  join sundown.host h on h.id = l.host
 cross join lateral (
       select case when l.observed_at is not null then l.observed_at
                   when l.state = 'pending' then l.placed_at + l.start_timeout
                   else least(l.decided_at, l.expires_at) + l.grace end as over,
              case when l.observed_at is not null then interval '30 s' else interval '5 s' end as patience) d
 where l.due_at < statement_timestamp() - interval '2 s'
    or d.over < statement_timestamp() - d.patience;
comment on view sundown.overdue is 'Agents that somebody should have looked at by now, or that should be over and are not. Empty in health.';

create view sundown.events as
select e.at, e.id, e.kind, e.was, e.state, e.reason, e.actor, (select h.name from sundown.host h where h.id = e.host) as host,
       e.epoch, e.container_id, e.expires_at, e.exit_code, e.xid, e.seq
  from sundown.event e;
comment on view sundown.events is 'Every transition of every agent, in the order of (xid, seq).';

create view sundown.hosts as
select h.id, h.name, h.uuid, h.endpoint, s.capacity, s.used, greatest(s.capacity - s.used, 0) as free, s.cordoned, h.seen_at,
       case when k.until > statement_timestamp() then k.replica end as keeper
  from sundown.host h
  join sundown.host_slot s on s.host = h.id
  left join sundown.keeper k on k.host = h.id;
comment on view sundown.hosts is 'Docker hosts: how full they are and which replica keeps them.';

create view sundown.replicas as
select r.id, r.name, r.release, r.listening, r.started_at, r.seen_at, r.seen_at > statement_timestamp() - interval '10 s' as alive,
       array(select h.name from sundown.host h where h.id = any (r.hosts) order by h.id) as hosts
  from sundown.replica r;
comment on view sundown.replicas is 'Replicas of the last hour, and whether they were heard of within ten seconds.';
