-- Partitions: made twelve weeks ahead without a gap, dropped when nothing in them is wanted. A week of ids is dropped only if it is
-- over, no live agent was submitted in it, and no outcome in it is younger than the retention. Runs with its owner's rights, so
-- that replicas need none to change tables; takes each lock for a moment or leaves that partition for the next time.
create or replace function sundown.upkeep(at timestamptz default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
    instant timestamptz := coalesce(at, statement_timestamp());
    parent  text;
    week    timestamptz;
    part    record;
    name    text;
    bound   text;
    made    integer := 0;
    dropped integer := 0;
    keys    integer;
begin
    -- One at a time; whoever comes second has nothing to do.
    if not pg_try_advisory_xact_lock(hashtextextended('sundown upkeep', 0)) then
        return jsonb_build_object('made', 0, 'dropped', 0, 'busy', true);
    end if;

    foreach parent in array array['agent', 'agent_outcome', 'agent_log', 'event'] loop
        -- Weeks begin on Monday, UTC, and are counted in hours: seven days are not always 168 of them in other time zones.
        -- Continue where the newest partition ends: no gap, however long nobody came.
        select coalesce(max(sundown.partition_end(c.relname)), date_trunc('week', instant, 'UTC')) into week
          from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = ('sundown.' || parent)::regclass;
        while week < instant + interval '13 weeks' loop
            name := format('%s_%s', parent, to_char(week at time zone 'UTC', 'YYYYMMDD'));
            bound := case when parent = 'event' then format('from (%L) to (%L)', week, week + interval '168 hours')
                          else format('from (%L) to (%L)', sundown.uuid_floor(week), sundown.uuid_floor(week + interval '168 hours')) end;
            -- Attached after it is made: creating it in place would lock the parent against every reader.
            execute format('create table if not exists sundown.%I (like sundown.%I including defaults including constraints including comments)', name, parent);
            execute format('alter table sundown.%I attach partition sundown.%I for values %s', parent, name, bound);
            -- Statement triggers of the parent do not see what is aimed at a partition.
            if parent <> 'agent_log' then
                execute format('create trigger not_emptied before truncate on sundown.%I for each statement execute function sundown.written_once(%L)',
                               name, 'sundown.' || parent);
            end if;
            if parent = 'agent_outcome' then
                execute format('create trigger guard_insert after insert on sundown.%I referencing new table as new_rows for each statement execute function sundown.outcome_inserted()', name);
            end if;
            made := made + 1;
            week := week + interval '168 hours';
        end loop;
    end loop;

    -- Dropping needs the table to itself. Whoever asks meanwhile waits behind us, so we give up soon and come back another time.
    perform set_config('lock_timeout', '200ms', true);
    foreach parent in array array['agent', 'agent_outcome', 'agent_log', 'event'] loop
        for part in
            select c.relname, sundown.partition_end(c.relname) - interval '168 hours' as starts, sundown.partition_end(c.relname) as ends
              from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = ('sundown.' || parent)::regclass
             order by c.relname
        loop
            -- A null would be no answer, and no answer drops nothing.
            continue when part.ends > instant or coalesce(sundown.week_wanted(parent, part.starts, part.ends, instant), true);
            begin
                -- The table first, as every query does, so that nobody is caught between the two. A submission that is under way
                -- holds it; when we have it, none is, and what we judge is final.
                execute format('lock table only sundown.%I in access exclusive mode', parent);
                execute format('lock table sundown.%I in access exclusive mode', part.relname);
                continue when coalesce(sundown.week_wanted(parent, part.starts, part.ends, instant), true);
                execute format('alter table sundown.%I detach partition sundown.%I', parent, part.relname);
                execute format('drop table sundown.%I', part.relname);
                dropped := dropped + 1;
            exception when lock_not_available then
                null;
            end;
        end loop;
    end loop;

    delete from sundown.agent_key where until < instant;
    get diagnostics keys = row_count;
    delete from sundown.replica where seen_at < instant - interval '1 hour';
    return jsonb_build_object('made', made, 'dropped', dropped, 'keys', keys);
end $$;
-- It drops history by the instant that it is told: nobody but its owner, and whom the owner lets, may tell it.
revoke execute on function sundown.upkeep(timestamptz) from public;
comment on function sundown.upkeep(timestamptz) is 'Makes partitions ahead, drops those that retention has passed, forgets old keys and replicas. Harmless at any time.';

-- The end of the week that a partition's name gives; null for any other name, for the planner asks about whatever table it likes.
create or replace function sundown.partition_end(name name) returns timestamptz
language sql stable as $$
    select case when name ~ '_[0-9]{8}$' then to_date(right(name, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' + interval '168 hours' end
$$;
comment on function sundown.partition_end(name) is 'The end of a partition''s week, from its name.';

create or replace function sundown.week_wanted(parent text, starts timestamptz, ends timestamptz, at timestamptz) returns boolean
language sql stable as $$
    select ends > at
        or case when parent = 'event' then ends > at - i.retention else
               exists (select from sundown.agent_live l where l.id >= sundown.uuid_floor(starts) and l.id < sundown.uuid_floor(ends))
               or exists (select from sundown.agent_outcome o
                           where o.id >= sundown.uuid_floor(starts) and o.id < sundown.uuid_floor(ends)
                             and o.finished_at > at - case when parent = 'agent_log' then i.log_retention else i.retention end)
           end
      from sundown.installation i
$$;
comment on function sundown.week_wanted(text, timestamptz, timestamptz, timestamptz) is
    'Whether anything in a week of a partitioned table must be kept: it is not over, an agent of it lives, or retention has not passed.';
