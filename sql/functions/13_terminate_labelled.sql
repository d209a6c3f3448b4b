-- The door out for many: asks for the end of every agent that carries these labels and is not being ended yet, the oldest first, and returns
-- how many those were; with dry_run only how many they are. Whoever ends thousands by `most` at a time holds none of them for long.
create or replace function sundown.terminate_labelled(
    labels  jsonb,
    actor   text default session_user,
    dry_run boolean default false,
    most    integer default null,
    notify  text default 'auto',
    at      timestamptz default null
) returns bigint
-- How many carry them differs from call to call.
language plpgsql set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_variable
declare
    ids uuid[];
begin
    if labels is null or jsonb_typeof(labels) <> 'object' or labels = '{}' then
        raise exception using errcode = 'SD400', constraint = 'invalid_labels', message = 'there are no labels to go by',
            hint = 'Give at least one, as in {"team": "blue"}: without any, everything would end.';
    end if;
    ids := array(select l.id from sundown.agent_live l join sundown.agent a on a.id = l.id
                  where a.labels @> labels and l.state <> 'terminating' and l.observed_at is null
                  order by l.id limit most);
    if not dry_run then
        perform from sundown.terminate_many(ids, array_fill(actor, array[cardinality(ids)]), notify, at);
    end if;
    return cardinality(ids);
end $$;
comment on function sundown.terminate_labelled(jsonb, text, boolean, integer, text, timestamptz) is 'Ends every agent with these labels and returns how many that are; dry_run only counts. at mocks the clock in tests.';
