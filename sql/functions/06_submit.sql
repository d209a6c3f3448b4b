-- The door in. In the caller's own transaction: if that rolls back, no container ever existed.
--
-- Every rule about what may be asked for is here and nowhere else, so that psql and HTTP are told the same. Set-based, for what a
-- statement costs here is the same for one agent and for a hundred: replicas submit together what came at the same time.
create or replace function sundown.submit_many(
    wishes  jsonb,
    notify  text default 'auto',
    at      timestamptz default null,
    records boolean default false
) returns table (nth bigint, id uuid, code text, problem text, remedy text, agent text)
-- What it costs for a few is guessed as if they were many; compiled, each call would take some 40 ms longer.
language plpgsql set jit = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    instant timestamptz := coalesce(at, clock_timestamp());
begin
    return query
    with asked as materialized (
        select w.nth,
               -- One after another also within the batch.
               coalesce(w.id, sundown.uuidv7(instant + (w.nth - 1) * interval '1 us')) as id,
               w.tenant, w.name, w.image, w.command, w.env, w.labels, w.cpus, w.memory, w.pids, w.network, w.run_at, ours.max_ttl as ceiling, longest.max_ttl,
               -- In seconds, whatever the calendar: months and days were made so by whoever asked.
               make_interval(secs => coalesce(w.ttl, least(extract(epoch from ours.default_ttl), extract(epoch from longest.max_ttl))::float8)) as ttl,
               make_interval(secs => coalesce(w.grace, 10)) as grace, make_interval(secs => coalesce(w.start_timeout, 60)) as start_timeout,
               make_interval(secs => w.queue_timeout) as queue_timeout
          from sundown.installation ours
         cross join rows from (jsonb_to_recordset(wishes) as (
                    id uuid, tenant text, name text, image text, command text[], env jsonb, labels jsonb, cpus numeric, memory bigint, pids integer,
                    network text, ttl float8, max_ttl float8, grace float8, start_timeout float8, queue_timeout float8, run_at timestamptz))
               with ordinality as w (id, tenant, name, image, command, env, labels, cpus, memory, pids, network, ttl, max_ttl, grace, start_timeout,
                                     queue_timeout, run_at, nth)
         cross join lateral (select coalesce(make_interval(secs => w.max_ttl), ours.max_ttl) as max_ttl) longest
    ), judged as materialized (
        select w.*,
               case
               when coalesce(w.image, '') = '' then array['missing_image', 'there is no image', 'Name the image to run, as in "busybox:1.36".']
               when w.image !~ '^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$' then array['invalid_image', 'the image is not a name of an image', 'Use a name such as "registry/name:tag" or "name@sha256:…", at most 255 characters, starting with a letter in lower case or a digit.']
               when array_position(w.command, null) is not null or array_ndims(w.command) > 1 then array['invalid_command', 'the command is not a plain list of strings', 'Give each argument as a string.']
               when octet_length(array_to_string(w.command, ' ')) > 65536 then array['invalid_command', 'the command is longer than 64 KiB', 'Put a long script into the image.']
               -- Before the ttl, whose default is cut to it.
               when w.max_ttl <= interval '0' then array['invalid_max_ttl', 'the max_ttl is not above zero', 'Give a duration such as "2h".']
               when w.max_ttl > w.ceiling then array['above_ceiling', format('the max_ttl is above this installation''s ceiling of %s s', extract(epoch from w.ceiling)::bigint), 'Ask for less, or have the operator raise SUNDOWN_MAX_TTL.']
               when w.ttl <= interval '0' then array['invalid_ttl', 'the ttl is not above zero', 'Give a duration such as "90s" or "1h30m".']
               when w.ttl > w.max_ttl then array['above_ceiling', format('the ttl is above the ceiling of %s s', extract(epoch from w.max_ttl)::numeric), 'Ask for less; the ceiling is the smaller of the agent''s max_ttl and SUNDOWN_MAX_TTL.']
               when w.grace < interval '0' or w.grace > interval '1 hour' then array['invalid_grace', 'the grace is not between 0 s and 1 h', 'Give the time between the stop signal and SIGKILL, as in "10s"; "0s" kills at once.']
               when w.start_timeout < interval '1 s' or w.start_timeout > interval '1 hour' then array['invalid_start_timeout', 'the start_timeout is not between 1 s and 1 h', 'Give the time that a start may take, as in "60s".']
               when w.queue_timeout <= interval '0' or w.queue_timeout > interval '1 year' then array['invalid_queue_timeout', 'the queue_timeout is not between 0 s and a year', 'Leave it out to wait for a place as long as it takes.']
               when w.run_at < timestamptz '1970-01-01' or w.run_at > instant + interval '366 days' then array['invalid_run_at', 'run_at is more than a year away', 'Give an instant within the next year.']
               when w.name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then array['invalid_name', 'the name is not one', 'Use at most 63 letters, digits, "_", "." and "-", starting with a letter or digit.']
               when w.tenant is null or w.tenant !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then array['invalid_tenant', 'the tenant is not a name', 'Use at most 63 letters, digits, "_", "." and "-".']
               when jsonb_typeof(w.labels) is distinct from 'object' then array['invalid_labels', 'labels are not an object', 'Give labels as {"key": "value"}.']
               when jsonb_typeof(w.env) is distinct from 'object' then array['invalid_env', 'env is not an object', 'Give env as {"NAME": "value"}.']
               when w.cpus is null or w.cpus < 0.01 or w.cpus > 512 then array['invalid_cpus', 'cpus is not between 0.01 and 512', 'Give the number of cores, as in 0.5.']
               when w.memory is null or w.memory < 6291456 or w.memory > 1099511627776 then array['invalid_memory', 'memory is not between 6 MiB and 1 TiB', 'Give bytes, as in 67108864.']
               when w.pids is null or w.pids < 1 or w.pids > 32768 then array['invalid_pids', 'pids is not between 1 and 32768', 'Give the number of processes that it may have.']
               when w.network is null or w.network not in ('none', 'bridge') then array['invalid_network', 'there is no such network', 'Use none or bridge.']
               -- Only what is an object comes this far.
               when w.labels <> '{}' and (select count(*) from jsonb_each(w.labels)) > 64 then array['invalid_labels', 'there are more than 64 labels', 'Use fewer.']
               when w.labels <> '{}' and exists (select from jsonb_each(w.labels) l where jsonb_typeof(l.value) <> 'string' or length(l.value #>> '{}') > 255) then array['invalid_labels', 'the value of a label is not a string of at most 255 characters', 'Give labels as {"key": "value"}.']
               when w.labels <> '{}' and exists (select from jsonb_object_keys(w.labels) l (k) where l.k !~ '^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$') then array['invalid_labels', 'the key of a label is not one', 'Use at most 63 letters, digits, "_", ".", "/" and "-", starting with a letter or digit.']
               when w.labels <> '{}' and exists (select from jsonb_object_keys(w.labels) l (k) where l.k ^@ 'sundown.') then array['invalid_labels', 'labels that begin with "sundown." are Sundown''s own', 'Choose another prefix.']
               when w.env <> '{}' and exists (select from jsonb_object_keys(w.env) e (k) where e.k !~ '^[A-Za-z_][A-Za-z0-9_.-]{0,127}$') then array['invalid_env', 'the name of an environment variable is not one', 'Use at most 128 letters, digits, "_", "." and "-", starting with a letter or "_".']
               when w.env <> '{}' and exists (select from jsonb_object_keys(w.env) e (k) where e.k ^@ 'SUNDOWN_') then array['invalid_env', 'variables that begin with "SUNDOWN_" are Sundown''s own', 'Choose another prefix.']
               when w.env <> '{}' and exists (select from jsonb_each(w.env) e where jsonb_typeof(e.value) <> 'string') then array['invalid_env', 'the value of an environment variable is not a string', 'Give env as {"NAME": "value"}.']
               when w.env <> '{}' and exists (select from jsonb_each_text(w.env) e where octet_length(e.value) > 32768) then array['invalid_env', 'the value of an environment variable is longer than 32 KiB', 'Put long values into a file of the image.']
               when w.env <> '{}' and (select sum(octet_length(e.key) + octet_length(e.value)) from jsonb_each_text(w.env) e) > 65536 then array['invalid_env', 'the environment is larger than 64 KiB', 'Put long values into a file of the image.']
               end as refusal
          from asked w
    ), agent as (
        insert into sundown.agent (id, tenant, name, image, command, env_keys, labels, cpus, memory, pids, network, ttl, max_ttl, grace,
                                   start_timeout, queue_timeout, run_at, created_at)
        select j.id, j.tenant, j.name, j.image, j.command, array(select jsonb_object_keys(j.env) order by 1), j.labels, j.cpus, j.memory, j.pids, j.network,
               j.ttl, j.max_ttl, j.grace, j.start_timeout, j.queue_timeout, j.run_at, instant
          from judged j where j.refusal is null
    ), secret as (
        insert into sundown.agent_secret (id, env) select j.id, j.env from judged j where j.refusal is null and j.env <> '{}'
    ), live as (
        insert into sundown.agent_live (id, due_at, ttl, max_ttl, grace, start_timeout, queue_until)
        select j.id, greatest(instant, j.run_at), j.ttl, j.max_ttl, j.grace, j.start_timeout, greatest(instant, j.run_at) + j.queue_timeout
          from judged j where j.refusal is null
    )
    select j.nth, j.id, j.refusal[1], j.refusal[2], j.refusal[3],
           -- By the names of columns, not by their places: a later release may have added some to the view.
           case when records and j.refusal is null then sundown.record(jsonb_populate_record(null::sundown.agents, jsonb_build_object(
               'id', j.id, 'name', j.name, 'tenant', j.tenant, 'state', 'pending', 'image', j.image, 'command', j.command, 'labels', j.labels,
               'ttl', j.ttl, 'max_ttl', j.max_ttl, 'grace', j.grace, 'run_at', j.run_at, 'created_at', instant, 'attempts', 0,
               'env_keys', array(select jsonb_object_keys(j.env) order by 1))))::text end
      from judged j order by j.nth;
    perform sundown.wake(notify, 'waits');
end $$;
comment on function sundown.submit_many is 'For replicas: submits many at once, each with its id or why it was refused. Use sundown.submit.';

-- One agent. Refusals carry SQLSTATE SD400 (bad request) or SD409 (conflict), the stable code as the constraint's name, and a hint that
-- says what to do.
create or replace function sundown.submit(
    image         text,
    command       text[] default '{}',
    ttl           interval default null,
    max_ttl       interval default null,
    grace         interval default null,
    name          text default null,
    tenant        text default 'default',
    labels        jsonb default '{}',
    env           jsonb default '{}',
    cpus          numeric default 1,
    memory        bigint default 268435456,
    pids          integer default 128,
    network       text default 'none',
    run_at        timestamptz default null,
    start_timeout interval default null,
    queue_timeout interval default null,
    key           text default null,
    notify        text default 'auto',
    at            timestamptz default null
) returns uuid
language plpgsql as $$
#variable_conflict use_variable
declare
    instant timestamptz := coalesce(at, clock_timestamp());
    new_id  uuid := sundown.uuidv7(instant);
    digest  bytea;
    known   record;
    refusal record;
begin
    if key = '' or octet_length(key) > 255 then
        raise exception using errcode = 'SD400', constraint = 'invalid_key', message = 'the idempotency key is empty or longer than 255 bytes',
            hint = 'Use something like a UUID.';
    end if;
    -- Of what was asked for, before defaults and bounds: an operator may change them before a request is repeated. One that a key does
    -- not pass below is refused there, with all that was written. As numbers: texts of durations and instants differ from session to session.
    if key is not null and octet_length(tenant) <= 63 then
        digest := sha256(convert_to(jsonb_build_array(
            image, command, extract(epoch from ttl), extract(epoch from max_ttl), extract(epoch from grace), name, labels, env, cpus, memory, pids,
            network, extract(epoch from run_at), extract(epoch from start_timeout), extract(epoch from queue_timeout))::text, 'UTF8'));
        -- Waits for whoever is submitting under this key, then sees what became of it.
        insert into sundown.agent_key as k (tenant, key, id, fingerprint, until)
        values (tenant, key, new_id, digest, instant + interval '1 day')
        on conflict on constraint agent_key_pkey do update
           set id = excluded.id, fingerprint = excluded.fingerprint, until = excluded.until
         where k.until < instant;
        if not found then
            select k.id, k.fingerprint into known from sundown.agent_key k where k.tenant = tenant and k.key = key;
            if known.fingerprint is distinct from digest then
                raise exception using errcode = 'SD409', constraint = 'key_reused',
                    message = 'this idempotency key was used for another agent', hint = 'Use a new key for a new request.';
            end if;
            return known.id;
        end if;
    end if;

    select s.code, s.problem, s.remedy into refusal
      from sundown.submit_many(jsonb_build_array(jsonb_build_object(
               'id', new_id, 'tenant', tenant, 'name', name, 'image', image, 'command', command, 'env', env, 'labels', labels, 'cpus', cpus,
               'memory', memory, 'pids', pids, 'network', network, 'ttl', extract(epoch from ttl), 'max_ttl', extract(epoch from max_ttl),
               'grace', extract(epoch from grace), 'start_timeout', extract(epoch from start_timeout), 'queue_timeout', extract(epoch from queue_timeout),
               'run_at', run_at)), notify, instant) s;
    if refusal.code is not null then
        raise exception using errcode = 'SD400', constraint = refusal.code, message = refusal.problem, hint = refusal.remedy;
    end if;
    return new_id;
end $$;
comment on function sundown.submit is 'Submits an agent in the caller''s transaction and returns its id. ttl counts from running; notify is auto, always or never; at mocks the clock in tests.';
