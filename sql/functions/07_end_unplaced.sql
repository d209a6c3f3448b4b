-- Ends agents that have no place yet: there never was a container, so nothing has to be stopped. The caller holds their rows.
create or replace function sundown.end_unplaced(ids uuid[], reason text, actor text, at timestamptz) returns void
-- By their ids, whatever the tables held when a session planned this: not by all that wait, nor by all that live.
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
#variable_conflict use_column
begin
    update sundown.agent_live l
       set state = 'terminating', reason = end_unplaced.reason, actor = end_unplaced.actor, decided_at = at, epoch = l.epoch + 1
     where l.id = any (ids) and l.placed_at is null;
    with gone as (
        delete from sundown.agent_live l where l.id = any (ids) and l.placed_at is null returning l.id, l.reason, l.actor, l.ttl, l.attempts, l.epoch, l.decided_at
    ), secret as (
        delete from sundown.agent_secret s where s.id in (select g.id from gone g)
    )
    insert into sundown.agent_outcome (id, state, reason, actor, host, ttl, attempts, epoch, decided_at, observed_at, finished_at)
    select g.id, 'expired', g.reason, g.actor, 0, g.ttl, g.attempts, g.epoch, g.decided_at, at, at from gone g;
end $$;
comment on function sundown.end_unplaced(uuid[], text, text, timestamptz) is 'Ends agents that still wait for a place. For terminate and the sweep.';
