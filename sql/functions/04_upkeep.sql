-- Partitions: made twelve weeks ahead without a gap, dropped when nothing in them is wanted. A week of ids is dropped only if it is
-- over, no live agent was submitted in it, and no outcome in it is younger than the retention. Runs with its owner's rights, so
-- that replicas need none to change tables; takes each lock for a moment or leaves that partition for the next time.
create or replace function sundown.upkeep(at timestamptz default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
    instant   timestamptz := coalesce(at, statement_timestamp());
    kept      interval;
    kept_logs interval;
    parent    text;
    week      timestamptz;
    part      record;
    name      text;
    bound     text;
    wanted    boolean;
    made      integer := 0;
    dropped   integer := 0;
    keys      integer;
begin
    -- One at a time; whoever comes second has nothing to do.
    if not pg_try_advisory_xact_lock(hashtextextended('sundown upkeep', 0)) then
        return jsonb_build_object('made', 0, 'dropped', 0, 'busy', true);
    end if;
    select retention, log_retention into kept, kept_logs from sundown.installation;

    foreach parent in array array['agent', 'agent_outcome', 'agent_log', 'event'] loop
        -- Weeks begin on Monday, UTC. Continue where the newest partition ends: no gap, however long nobody came.
        select coalesce(max(sundown.partition_end(c.relname)), date_trunc('week', instant, 'UTC')) into week
          from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = ('sundown.' || parent)::regclass;
        while week < instant + interval '13 weeks' loop
            name := format('%s_%s', parent, to_char(week at time zone 'UTC', 'YYYYMMDD'));
            bound := case when parent = 'event' then format('from (%L) to (%L)', week, week + interval '7 days')
                          else format('from (%L) to (%L)', sundown.uuid_floor(week), sundown.uuid_floor(week + interval '7 days')) end;
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
            week := week + interval '7 days';
        end loop;

        for part in
            select c.relname, sundown.partition_end(c.relname) - interval '7 days' as starts, sundown.partition_end(c.relname) as ends
              from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = ('sundown.' || parent)::regclass and sundown.partition_end(c.relname) <= instant
             order by c.relname
        loop
            begin
                -- Locked first, then judged: a submission that is under way holds it and is waited for, or put off to the next time.
                execute format('lock table sundown.%I in access exclusive mode', part.relname);
                wanted := case parent when 'event' then part.ends > instant - kept else
                    exists (select from sundown.agent_live l where l.id >= sundown.uuid_floor(part.starts) and l.id < sundown.uuid_floor(part.ends))
                    or exists (select from sundown.agent_outcome o where o.id >= sundown.uuid_floor(part.starts) and o.id < sundown.uuid_floor(part.ends)
                                  and o.finished_at > instant - case parent when 'agent_log' then kept_logs else kept end)
                    end;
                if not wanted then
                    execute format('alter table sundown.%I detach partition sundown.%I', parent, part.relname);
                    execute format('drop table sundown.%I', part.relname);
                    dropped := dropped + 1;
                end if;
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
comment on function sundown.upkeep(timestamptz) is 'Makes partitions ahead, drops those that retention has passed, forgets old keys and replicas. Harmless at any time.';

-- The end of the week that a partition's name gives.
create or replace function sundown.partition_end(name name) returns timestamptz
language sql stable as $$ select to_date(right(name, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' + interval '7 days' $$;
comment on function sundown.partition_end(name) is 'The end of the week that the name of a partition gives.';
