-- An operator's word that a host is gone for good: what was on it is lost. Returns how many agents were. Nothing else in Sundown
-- ever concludes this: a daemon that does not answer is not gone.
create or replace function sundown.forget_host(host integer) returns bigint
language plpgsql as $$
#variable_conflict use_column
declare
    lost bigint;
begin
    perform from sundown.agent_live l where l.host = forget_host.host order by l.id for update;
    -- Waits for a placement that is under way; nobody can be placed there any more, and the next statement sees who was.
    delete from sundown.host_slot s where s.host = forget_host.host;
    update sundown.agent_live l
       set observed_at = statement_timestamp(), error = coalesce(l.error, 'its host was forgotten'), epoch = l.epoch + 1,
           ended_state = case when l.state = 'terminating' then 'expired' else 'failed' end,
           ended_reason = case when l.state = 'terminating' then l.reason else 'host_lost' end
     where l.host = forget_host.host and l.observed_at is null;
    with gone as (
        delete from sundown.agent_live l where l.host = forget_host.host
        returning l.id, l.ended_state, l.ended_reason, l.actor, l.host, l.container_id, l.exit_code, l.oom_killed, l.error, l.ttl,
                  l.attempts, l.epoch, l.expires_at, l.placed_at, l.started_at, l.decided_at, l.signalled_at, l.killed_at, l.observed_at
    ), secret as (
        delete from sundown.agent_secret s where s.id in (select g.id from gone g)
    ), outcome as (
        insert into sundown.agent_outcome (id, state, reason, actor, host, container_id, exit_code, oom_killed, error, ttl, attempts, epoch, expires_at,
                                           placed_at, started_at, decided_at, signalled_at, killed_at, observed_at, finished_at)
        select g.id, g.ended_state, g.ended_reason, g.actor, g.host, g.container_id, g.exit_code, g.oom_killed, g.error, g.ttl, g.attempts, g.epoch,
               g.expires_at, g.placed_at, g.started_at, g.decided_at, g.signalled_at, g.killed_at, g.observed_at, statement_timestamp()
          from gone g
        returning id
    )
    select count(*) into lost from outcome;
    delete from sundown.keeper k where k.host = forget_host.host;
    delete from sundown.host h where h.id = forget_host.host;
    return lost;
end $$;
comment on function sundown.forget_host(integer) is 'Declares a host lost: its agents end as host_lost, or as they were being ended. Returns how many.';
