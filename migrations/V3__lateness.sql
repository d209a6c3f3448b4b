-- How late each end was, kept with it: when it was decided, when its process was known to be dead, when that was confirmed. The first and
-- the last are there already.
set local lock_timeout = '5s';

-- Null from replicas of a release that does not know it.
alter table sundown.agent_live add column dead_at timestamptz;
alter table sundown.agent_outcome add column dead_at timestamptz;
comment on column sundown.agent_live.dead_at is 'When its process was known to be dead, by the kernel or by Docker; null: it never ran, or nobody knows. A replica measures how long ago that was, the database''s clock makes an instant of it. Written with observed_at.';
comment on column sundown.agent_outcome.dead_at is 'When its process was known to be dead; null: it never ran, or nobody knows.';

create view sundown.lateness as
select o.id, o.reason, (select h.name from sundown.host h where h.id = o.host) as host, o.finished_at,
       case when o.reason = 'ttl_expired' then o.decided_at - o.expires_at end as decision,
       o.dead_at - d.due as dead, o.observed_at - d.due as confirmed
  from sundown.agent_outcome o
 cross join lateral (select case when o.reason = 'ttl_expired' then o.expires_at else o.decided_at end as due) d
 where o.state = 'expired' and o.host <> 0;
comment on view sundown.lateness is 'By how much each end that Sundown brought about came after the deadline, or after the wish for it, which has no lateness of its own. Grace is in it.';
comment on column sundown.lateness.decision is 'From the deadline to the decision; null for an end that was asked for.';
comment on column sundown.lateness.dead is 'To its process known to be dead.';
comment on column sundown.lateness.confirmed is 'To Docker''s word that it has ended.';
