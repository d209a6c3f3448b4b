-- Partitions for the four weeks that begin six to nine weeks ago: retention has passed all that was submitted and has ended in them.
do $$
declare
    week   timestamptz;
    parent text;
    lower  text;
    upper  text;
begin
    for ago in 6..9 loop
        week := date_trunc('week', now(), 'UTC') - ago * interval '168 hours';
        foreach parent in array array['agent', 'agent_outcome', 'agent_log', 'event'] loop
            lower := case when parent = 'event' then week::text else sundown.uuid_floor(week)::text end;
            upper := case when parent = 'event' then (week + interval '168 hours')::text else sundown.uuid_floor(week + interval '168 hours')::text end;
            execute format('create table sundown.%I partition of sundown.%I for values from (%L) to (%L)',
                           format('%s_%s', parent, to_char(week at time zone 'UTC', 'YYYYMMDD')), parent, lower, upper);
        end loop;
    end loop;
end $$;
