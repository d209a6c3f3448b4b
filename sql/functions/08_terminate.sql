-- The door out. Asks for the end of agents, each on behalf of its actor, and returns the state of each after: terminating, or how it
-- had ended. No row: unknown. Asking again changes nothing.
--
-- The rows first, in order of id; what is said of them is read by a later statement: one statement would call an agent unknown that ends
-- between its two halves. Set-based, as the door in.
create or replace function sundown.terminate_many(
    ids     uuid[],
    actors  text[],
    notify  text default 'auto',
    at      timestamptz default null,
    records boolean default false
) returns table (id uuid, state text, agent text)
-- By their ids, as the above.
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
#variable_conflict use_column
declare
    instant timestamptz;
    waiting record;
begin
    perform from sundown.agent_live l where l.id = any (ids) order by l.id for update;
    instant := coalesce(at, clock_timestamp());
    for waiting in
        select k.actor, array_agg(l.id order by l.id) as ids
          from unnest(ids, actors) k (id, actor)
          join sundown.agent_live l on l.id = k.id
         where l.placed_at is null and l.state = 'pending'
         group by k.actor
    loop
        perform sundown.end_unplaced(waiting.ids, 'terminated', waiting.actor, instant);
    end loop;
    -- Those that are being ended already, or were seen to have ended by themselves: whoever is at them goes on.
    update sundown.agent_live l
       set state = 'terminating', reason = 'terminated', actor = k.actor, decided_at = instant,
           -- Whoever names an instant that is to come does not put off the end.
           epoch = l.epoch + 1, leased_by = null, attempts = 0, due_at = least(instant, clock_timestamp())
      from unnest(ids, actors) k (id, actor)
     where l.id = k.id and l.placed_at is not null and l.state <> 'terminating' and l.observed_at is null;
    if found then
        perform sundown.wake(notify);
    end if;
    if records then
        return query select a.id, a.state, sundown.record(a)::text from sundown.agents a where a.id = any (ids);
    else
        return query
        select l.id, l.state, null from sundown.agent_live l where l.id = any (ids)
         union all
        select o.id, o.state, null from sundown.agent_outcome o where o.id = any (ids);
    end if;
end $$;
comment on function sundown.terminate_many is 'For replicas: ends many agents at once. Use sundown.terminate.';

-- One agent. Raises SD404 unknown_agent.
create or replace function sundown.terminate(
    id     uuid,
    actor  text default session_user,
    notify text default 'auto',
    at     timestamptz default null
) returns text
language plpgsql as $$
declare
    after text;
begin
    select t.state into after from sundown.terminate_many(array[terminate.id], array[terminate.actor], terminate.notify, terminate.at) t;
    if not found then
        raise exception using errcode = 'SD404', constraint = 'unknown_agent', message = format('there is no agent %s', terminate.id),
            hint = 'Look at sundown.agents; ended agents are forgotten after the retention.';
    end if;
    return after;
end $$;
comment on function sundown.terminate(uuid, text, text, timestamptz) is 'Ends an agent: signal, grace, SIGKILL. Returns its state after. at mocks the clock in tests.';
