-- The door out. Asks for an agent's end and returns its state after: terminating, or how it had ended. Asking again changes nothing.
--
-- The row first, the outcome in a second statement, "unknown" only then: one statement would call an agent unknown that ends
-- between its two halves. Raises SD404 unknown_agent.
create or replace function sundown.terminate(
    id     uuid,
    actor  text default session_user,
    notify text default 'auto',
    at     timestamptz default null
) returns text
language plpgsql as $$
#variable_conflict use_column
declare
    instant timestamptz;
    live    record;
    final   text;
begin
    select l.state, l.host, l.observed_at into live from sundown.agent_live l where l.id = terminate.id for update;
    if not found then
        select o.state into final from sundown.agent_outcome o where o.id = terminate.id;
        if not found then
            raise exception using errcode = 'SD404', constraint = 'unknown_agent', message = format('there is no agent %s', terminate.id),
                hint = 'Look at sundown.agents; ended agents are forgotten after the retention.';
        end if;
        return final;
    end if;
    instant := coalesce(at, clock_timestamp());
    -- Already being ended, or seen to have ended by itself: whoever is at it goes on.
    if live.state = 'terminating' or live.observed_at is not null then
        return live.state;
    end if;
    if live.host = 0 then
        perform sundown.end_unplaced(array[terminate.id], 'terminated', terminate.actor, instant);
        return 'expired';
    end if;
    update sundown.agent_live l
       set state = 'terminating', reason = 'terminated', actor = terminate.actor, decided_at = instant,
           -- Whoever names an instant that is to come does not put off the end.
           epoch = l.epoch + 1, leased_by = null, attempts = 0, due_at = least(instant, clock_timestamp())
     where l.id = terminate.id;
    perform sundown.wake(notify);
    return 'terminating';
end $$;
comment on function sundown.terminate(uuid, text, text, timestamptz) is 'Ends an agent: signal, grace, SIGKILL. Returns its state after. at mocks the clock in tests.';
