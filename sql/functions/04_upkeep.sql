-- Partitions: made twelve weeks ahead without a gap, dropped when nothing in them is wanted. A week of ids is dropped only if it is
-- over, no live agent was submitted in it, and no outcome in it is younger than the retention. Both run with their owner's rights, so
-- that replicas need none to change tables, and take each lock for a moment or leave that partition for the next time.

-- Making is a call of its own: no drop that takes too long or fails may undo it, or there would soon be no week to submit into.
create or replace function sundown.make_ahead(at timestamptz default null) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
    instant timestamptz := coalesce(at, statement_timestamp());
    parent  text;
    week    timestamptz;
    name    text;
    bound   text;
    made    integer := 0;
begin
    -- One at a time; whoever comes second has nothing to do.
    if not pg_try_advisory_xact_lock(hashtextextended('sundown make_ahead', 0)) then
        return 0;
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
    return made;
end $$;
revoke execute on function sundown.make_ahead(timestamptz) from public;
comment on function sundown.make_ahead(timestamptz) is 'Makes partitions ahead; returns how many. Harmless at any time.';

-- Drops one partition and returns, so that no lock is held longer than one drop takes: to be called until nothing is dropped.
create or replace function sundown.upkeep(at timestamptz default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
declare
    instant timestamptz := coalesce(at, statement_timestamp());
    made    integer := sundown.make_ahead(at);
    parent  text;
    part    record;
    held    boolean;
    keys    integer;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('sundown upkeep', 0)) then
        return jsonb_build_object('made', made, 'dropped', 0, 'keys', 0, 'busy', true);
    end if;

    -- Dropping needs the table to itself. Whoever asks meanwhile waits behind us, so we give up soon and come back another time.
    foreach parent in array array['agent', 'agent_outcome', 'agent_log', 'event'] loop
        for part in
            select c.relname, sundown.partition_end(c.relname) - interval '168 hours' as starts, sundown.partition_end(c.relname) as ends
              from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = ('sundown.' || parent)::regclass
             order by c.relname
        loop
            -- A null would be no answer, and no answer drops nothing.
            continue when part.ends > instant or coalesce(sundown.week_wanted(parent, part.starts, part.ends, instant), true);
            held := false;
            begin
                -- The table first, as every query does, so that nobody is caught between the two. A submission that is under way
                -- holds it; when we have it, none is, and what we judge is final.
                execute format('lock table only sundown.%I in access exclusive mode', parent);
                held := true;
                execute format('lock table sundown.%I in access exclusive mode', part.relname);
                if not coalesce(sundown.week_wanted(parent, part.starts, part.ends, instant), true) then
                    execute format('alter table sundown.%I detach partition sundown.%I', parent, part.relname);
                    execute format('drop table sundown.%I', part.relname);
                    return jsonb_build_object('made', made, 'dropped', 1, 'keys', 0);
                end if;
                -- Somebody came in between: as if there had been no lock to be had, which gives back what we hold.
                raise lock_not_available;
            exception when lock_not_available then
                -- Each try holds up whoever asks meanwhile: none for the other weeks of a table that is not to be had.
                exit when not held;
            end;
        end loop;
    end loop;

    delete from sundown.agent_key where until < instant;
    get diagnostics keys = row_count;
    delete from sundown.replica where seen_at < instant - interval '1 hour';
    return jsonb_build_object('made', made, 'dropped', 0, 'keys', keys);
end $$;
-- It drops history by the instant that it is told: nobody but its owner, and whom the owner lets, may tell it.
revoke execute on function sundown.upkeep(timestamptz) from public;
comment on function sundown.upkeep(timestamptz) is
    'Makes partitions ahead; drops one that retention has passed, or when there is none forgets old keys and replicas. Harmless at any time.';

-- The end of the week that a partition's name gives; null for any other name, for the planner asks about whatever table it likes.
create or replace function sundown.partition_end(name name) returns timestamptz
language sql stable as $$
    select case when name ~ '_[0-9]{8}$' then to_date(right(name, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' + interval '168 hours' end
$$;
comment on function sundown.partition_end(name) is 'The end of a partition''s week, from its name.';

-- Asked again under the lock, so it reads no history: the youngest outcome of a week is at the end of an index. Looked for in that
-- week's own partition, where the planner can take nothing else for it.
create or replace function sundown.week_wanted(parent text, starts timestamptz, ends timestamptz, at timestamptz) returns boolean
language plpgsql stable as $$
declare
    outcomes regclass := to_regclass('sundown.agent_outcome_' || to_char(starts at time zone 'UTC', 'YYYYMMDD'));
    kept     interval;
    youngest timestamptz;
begin
    select case when parent = 'agent_log' then i.log_retention else i.retention end into kept from sundown.installation i;
    if parent = 'event' then
        return ends > at or ends > at - kept;
    elsif ends > at or exists (select from sundown.agent_live l where l.id >= sundown.uuid_floor(starts) and l.id < sundown.uuid_floor(ends)) then
        return true;
    elsif outcomes is not null then
        execute format('select max(o.finished_at) from %s o', outcomes) into youngest;
    end if;
    return case when youngest is null then kept is null else youngest > at - kept end;
end $$;
comment on function sundown.week_wanted(text, timestamptz, timestamptz, timestamptz) is
    'Whether anything in a week of a partitioned table must be kept: it is not over, an agent of it lives, or retention has not passed.';
