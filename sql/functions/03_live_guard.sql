-- The life of an agent, enforced: which rows may appear, change and go, whoever writes them, and one event for each transition.
-- Set-based: one pass over a statement's transition tables, not one call for each row. A session plans these once, for as many rows as it had
-- in hand then and for tables as they were then; whatever that was, each row is looked up by its id. (With `exists` it may instead read all there is.)
--
--   pending -> running | terminating | failed
--   running -> terminating | succeeded | failed
--   terminating -> expired, or before any signal was sent (agent_live_first_look) succeeded | failed

create or replace function sundown.live_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    bad uuid;
begin
    select n.id into bad
      from new_rows n
      left join sundown.agent a on a.id = n.id
      left join sundown.agent_outcome o on o.id = n.id
     where n.state <> 'pending' or n.host <> 0 or n.epoch <> 0 or a.id is null or o.id is not null
     limit 1;
    if found then
        raise exception using errcode = 'SD403', constraint = 'life_begins_pending',
            message = format('agent %s cannot begin to live: it was not submitted, has ended, or is not pending', bad),
            hint = 'Submit agents with sundown.submit.';
    end if;
    insert into sundown.event (id, kind, state, actor, host, epoch, expires_at)
    select n.id, 'state', n.state, coalesce(n.actor, session_user), n.host, n.epoch, n.expires_at from new_rows n order by n.id;
    return null;
end $$;

create or replace function sundown.live_updated() returns trigger
-- Joins what changed with itself, and may be called by one that joins otherwise.
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_hashjoin = on set jit = off as $$
declare
    bad record;
begin
    select coalesce(o.id, n.id) as id, o.state as was, n.state as state,
           case when o.id is null or n.id is null then 'id_is_fixed'
                when n.epoch < o.epoch then 'epoch_never_falls'
                when o.container_id <> n.container_id or (o.container_id is not null and n.container_id is null) then 'container_set_once'
                when o.host <> 0 and n.host <> o.host then 'host_set_once'
                when o.observed_at is not null and (n.observed_at, n.dead_at, n.ended_state, n.ended_reason, n.exit_code, n.oom_killed)
                     is distinct from (o.observed_at, o.dead_at, o.ended_state, o.ended_reason, o.exit_code, o.oom_killed) then 'facts_are_final'
                when o.reason is not null and n.reason is distinct from o.reason then 'reason_set_once'
                else 'legal_transition' end as rule
      into bad
      from old_rows o
      full join new_rows n on n.id = o.id
     where o.id is null or n.id is null
        or n.epoch < o.epoch
        or o.container_id <> n.container_id or (o.container_id is not null and n.container_id is null)
        or (o.host <> 0 and n.host <> o.host)
        or (o.observed_at is not null and (n.observed_at, n.dead_at, n.ended_state, n.ended_reason, n.exit_code, n.oom_killed)
            is distinct from (o.observed_at, o.dead_at, o.ended_state, o.ended_reason, o.exit_code, o.oom_killed))
        or (o.reason is not null and n.reason is distinct from o.reason)
        or (n.state <> o.state and (o.state, n.state) not in (('pending', 'running'), ('pending', 'terminating'), ('running', 'terminating')))
     limit 1;
    if found then
        raise exception using errcode = 'SD403', constraint = bad.rule,
            message = format('agent %s: %s', bad.id, case bad.rule
                when 'id_is_fixed' then 'an id never changes'
                when 'epoch_never_falls' then 'its epoch never falls'
                when 'container_set_once' then 'its container is recorded once'
                when 'host_set_once' then 'it stays on the host where it was placed'
                when 'facts_are_final' then 'what was seen of its end is final'
                when 'reason_set_once' then 'the reason of its end is decided once'
                else format('it cannot go from %s to %s', bad.was, bad.state) end),
            hint = 'Use sundown.terminate and sundown.extend.';
    end if;
    insert into sundown.event (id, kind, was, state, reason, actor, host, epoch, container_id, expires_at)
    select n.id, case when n.state <> o.state then 'state' else 'extended' end, o.state, n.state, n.reason, n.actor, n.host, n.epoch,
           n.container_id, n.expires_at
      from old_rows o
      join new_rows n on n.id = o.id
     where n.state <> o.state or n.ttl <> o.ttl or (n.state = 'running' and n.expires_at <> o.expires_at)
     order by n.id;
    return null;
end $$;

create or replace function sundown.live_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    bad record;
begin
    select d.id, d.state as was, o.state into bad
      from old_rows d
      left join sundown.agent_outcome o on o.id = d.id
     where o.id is null
        -- What the outcome says was seen first, but for one that never had a place.
        or (d.host <> 0 and d.observed_at is null)
        or (d.host <> 0 and (d.ended_state, d.ended_reason, d.exit_code) is distinct from (o.state, o.reason, o.exit_code))
        or (d.state, o.state) not in (('pending', 'failed'), ('running', 'succeeded'), ('running', 'failed'),
                                      ('terminating', 'expired'), ('terminating', 'succeeded'), ('terminating', 'failed'))
     limit 1;
    if found then
        raise exception using errcode = 'SD403', constraint = 'life_ends_with_outcome',
            message = format('agent %s cannot leave %s for %s', bad.id, bad.was, coalesce(bad.state, 'nothing')),
            hint = 'A live row goes only with its outcome. To end an agent use sundown.terminate.';
    end if;
    insert into sundown.event (id, kind, was, state, reason, actor, host, epoch, container_id, expires_at, exit_code)
    select o.id, 'state', d.state, o.state, o.reason, o.actor, o.host, o.epoch, o.container_id, o.expires_at, o.exit_code
      from old_rows d
      join sundown.agent_outcome o on o.id = d.id
     order by o.id;
    return null;
end $$;

-- An outcome beside a live row, or for an agent that nobody submitted, is a forgery.
create or replace function sundown.outcome_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    bad uuid;
begin
    select n.id into bad
      from new_rows n
      left join sundown.agent_live l on l.id = n.id
      left join sundown.agent a on a.id = n.id
     where l.id is not null or a.id is null
     limit 1;
    if found then
        raise exception using errcode = 'SD403', constraint = 'outcome_ends_a_life',
            message = format('agent %s: an outcome is written only by the end of a life', bad),
            hint = 'To end an agent use sundown.terminate.';
    end if;
    return null;
end $$;

create or replace trigger guard_insert after insert on sundown.agent_live
    referencing new table as new_rows for each statement execute function sundown.live_inserted();
create or replace trigger guard_update after update on sundown.agent_live
    referencing old table as old_rows new table as new_rows for each statement execute function sundown.live_updated();
create or replace trigger guard_delete after delete on sundown.agent_live
    referencing old table as old_rows for each statement execute function sundown.live_deleted();
create or replace trigger guard_insert after insert on sundown.agent_outcome
    referencing new table as new_rows for each statement execute function sundown.outcome_inserted();

comment on function sundown.live_inserted() is 'Trigger: a life begins pending, unplaced, submitted and only once. Writes its event.';
comment on function sundown.live_updated() is 'Trigger: only legal transitions; what is written once stays. Writes an event for each transition.';
comment on function sundown.live_deleted() is 'Trigger: a life ends only with a legal outcome. Writes its event.';
comment on function sundown.outcome_inserted() is 'Trigger: an outcome is of an agent that was submitted and does not live any more.';
