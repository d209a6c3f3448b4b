-- Moves a deadline. A running agent then ends at now + ttl, one that does not run yet has that ttl when it does; returns the
-- deadline, null while it waits for a place. An acknowledged extension is never followed by a stop before the new deadline: the
-- row lock decides between it and the sweep. Raises SD409 already_over or above_ceiling, SD404 unknown_agent, SD400 invalid_ttl.
create or replace function sundown.extend(
    id     uuid,
    ttl    interval,
    notify text default 'auto',
    at     timestamptz default null
) returns timestamptz
language plpgsql as $$
#variable_conflict use_column
declare
    span     interval := make_interval(secs => extract(epoch from extend.ttl));
    instant  timestamptz;
    live     record;
    deadline timestamptz;
begin
    if span is null or span <= interval '0' then
        raise exception using errcode = 'SD400', constraint = 'invalid_ttl', message = 'the ttl is not above zero',
            hint = 'Give a duration such as "90s"; to end an agent now, use DELETE or sundown.terminate.';
    end if;
    select l.state, l.host, l.max_ttl, l.start_timeout, l.placed_at, l.started_at, l.expires_at, l.observed_at into live
      from sundown.agent_live l where l.id = extend.id for update;
    if not found and not exists (select from sundown.agent_outcome o where o.id = extend.id) then
        raise exception using errcode = 'SD404', constraint = 'unknown_agent', message = format('there is no agent %s', extend.id),
            hint = 'Look at sundown.agents; ended agents are forgotten after the retention.';
    end if;
    -- Read after the row is held: waiting for it may have taken us past the deadline. A mocked clock may be ahead of ours, and never
    -- behind it: an instant that is over would bring back an agent that is.
    instant := greatest(at, clock_timestamp());
    if live.state is null or live.state = 'terminating' or live.observed_at is not null
       or (live.state = 'running' and instant >= live.expires_at) then
        raise exception using errcode = 'SD409', constraint = 'already_over', message = 'its deadline has passed or it is being ended',
            hint = 'Submit a new agent.';
    end if;
    deadline := case live.state when 'running' then instant + span else live.placed_at + live.start_timeout + span end;
    -- Bounded from its placement too, as the provisional deadline is: the label of its container says that none lives longer, and a
    -- start that was recorded late must not make that untrue.
    if span > live.max_ttl or deadline > least(live.started_at, live.placed_at + live.start_timeout) + live.max_ttl then
        raise exception using errcode = 'SD409', constraint = 'above_ceiling',
            message = format('that is beyond the longest life of %s s', extract(epoch from live.max_ttl)::numeric),
            hint = 'Extend by less. The ceiling is max_ttl, given at submit.';
    end if;
    update sundown.agent_live l
       set ttl = span, expires_at = deadline, due_at = case when l.state = 'running' then deadline else l.due_at end
     where l.id = extend.id;
    perform sundown.wake(notify);
    return deadline;
end $$;
comment on function sundown.extend(uuid, interval, text, timestamptz) is 'Moves an agent''s deadline to now + ttl, within its max_ttl. Returns the deadline. at mocks the clock in tests.';
