-- The door in. One agent, in the caller's own transaction: if that rolls back, no container ever existed.
--
-- Every rule about what may be asked for is here and nowhere else, so that psql and HTTP are told the same. Refusals carry
-- SQLSTATE SD400 (bad request) or SD409 (conflict), the stable code as the constraint's name, and a hint that says what to do.
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
    ours    record;
    digest  bytea;
    known   record;
    code    text;
    problem text;
    remedy  text;
begin
    -- Of what was asked for, before defaults and bounds: an operator may change them before a request is repeated. One that a key does
    -- not pass below is refused there, with all that was written. As numbers: texts of durations and instants differ from session to session.
    if key <> '' and octet_length(key) <= 255 and octet_length(tenant) <= 63 then
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

    select i.default_ttl, i.max_ttl into ours from sundown.installation i;
    max_ttl := make_interval(secs => extract(epoch from coalesce(max_ttl, ours.max_ttl)));
    -- Months and days become seconds: a deadline is a duration, whatever the calendar.
    ttl := make_interval(secs => extract(epoch from coalesce(ttl, least(ours.default_ttl, max_ttl))));
    grace := make_interval(secs => extract(epoch from coalesce(grace, interval '10 s')));
    start_timeout := make_interval(secs => extract(epoch from coalesce(start_timeout, interval '60 s')));

    select c, p, r into code, problem, remedy from (values
        (coalesce(image, '') = '', 'missing_image', 'there is no image', 'Name the image to run, as in "busybox:1.36".'),
        (image !~ '^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$', 'invalid_image', 'the image is not a name of an image', 'Use a name such as "registry/name:tag" or "name@sha256:…", at most 255 characters, starting with a letter in lower case or a digit.'),
        (array_position(command, null) is not null or array_ndims(command) > 1, 'invalid_command', 'the command is not a plain list of strings', 'Give each argument as a string.'),
        (octet_length(array_to_string(command, ' ')) > 65536, 'invalid_command', 'the command is longer than 64 KiB', 'Put a long script into the image.'),
        -- Before the ttl, whose default is cut to it.
        (max_ttl <= interval '0', 'invalid_max_ttl', 'the max_ttl is not above zero', 'Give a duration such as "2h".'),
        (max_ttl > ours.max_ttl, 'above_ceiling', format('the max_ttl is above this installation''s ceiling of %s s', extract(epoch from ours.max_ttl)::bigint), 'Ask for less, or have the operator raise SUNDOWN_MAX_TTL.'),
        (ttl <= interval '0', 'invalid_ttl', 'the ttl is not above zero', 'Give a duration such as "90s" or "1h30m".'),
        (ttl > max_ttl, 'above_ceiling', format('the ttl is above the ceiling of %s s', extract(epoch from max_ttl)::numeric), 'Ask for less; the ceiling is the smaller of the agent''s max_ttl and SUNDOWN_MAX_TTL.'),
        (grace < interval '0' or grace > interval '1 hour', 'invalid_grace', 'the grace is not between 0 s and 1 h', 'Give the time between the stop signal and SIGKILL, as in "10s"; "0s" kills at once.'),
        (start_timeout < interval '1 s' or start_timeout > interval '1 hour', 'invalid_start_timeout', 'the start_timeout is not between 1 s and 1 h', 'Give the time that a start may take, as in "60s".'),
        (queue_timeout <= interval '0' or queue_timeout > interval '1 year', 'invalid_queue_timeout', 'the queue_timeout is not between 0 s and a year', 'Leave it out to wait for a place as long as it takes.'),
        (run_at < timestamptz '1970-01-01' or run_at > instant + interval '366 days', 'invalid_run_at', 'run_at is more than a year away', 'Give an instant within the next year.'),
        (name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$', 'invalid_name', 'the name is not one', 'Use at most 63 letters, digits, "_", "." and "-", starting with a letter or digit.'),
        (tenant is null or tenant !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$', 'invalid_tenant', 'the tenant is not a name', 'Use at most 63 letters, digits, "_", "." and "-".'),
        (jsonb_typeof(labels) is distinct from 'object', 'invalid_labels', 'labels are not an object', 'Give labels as {"key": "value"}.'),
        (jsonb_typeof(env) is distinct from 'object', 'invalid_env', 'env is not an object', 'Give env as {"NAME": "value"}.'),
        (cpus is null or cpus < 0.01 or cpus > 512, 'invalid_cpus', 'cpus is not between 0.01 and 512', 'Give the number of cores, as in 0.5.'),
        (memory is null or memory < 6291456 or memory > 1099511627776, 'invalid_memory', 'memory is not between 6 MiB and 1 TiB', 'Give bytes, as in 67108864.'),
        (pids is null or pids < 1 or pids > 32768, 'invalid_pids', 'pids is not between 1 and 32768', 'Give the number of processes that it may have.'),
        (network is null or network not in ('none', 'bridge'), 'invalid_network', 'there is no such network', 'Use none or bridge.'),
        (key = '' or octet_length(key) > 255, 'invalid_key', 'the idempotency key is empty or longer than 255 bytes', 'Use something like a UUID.')
    ) as rules (broken, c, p, r) where broken limit 1;
    if code is null and labels <> '{}' then
        select c, p, r into code, problem, remedy from (values
            ((select count(*) from jsonb_each(labels)) > 64, 'invalid_labels', 'there are more than 64 labels', 'Use fewer.'),
            (exists (select from jsonb_each(labels) l where jsonb_typeof(l.value) <> 'string' or length(l.value #>> '{}') > 255), 'invalid_labels', 'the value of a label is not a string of at most 255 characters', 'Give labels as {"key": "value"}.'),
            (exists (select from jsonb_object_keys(labels) l (k) where l.k !~ '^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$'), 'invalid_labels', 'the key of a label is not one', 'Use at most 63 letters, digits, "_", ".", "/" and "-", starting with a letter or digit.'),
            (exists (select from jsonb_object_keys(labels) l (k) where l.k ^@ 'sundown.'), 'invalid_labels', 'labels that begin with "sundown." are Sundown''s own', 'Choose another prefix.')
        ) as rules (broken, c, p, r) where broken limit 1;
    end if;
    if code is null and env <> '{}' then
        select c, p, r into code, problem, remedy from (values
            (exists (select from jsonb_object_keys(env) e (k) where e.k !~ '^[A-Za-z_][A-Za-z0-9_.-]{0,127}$'), 'invalid_env', 'the name of an environment variable is not one', 'Use at most 128 letters, digits, "_", "." and "-", starting with a letter or "_".'),
            (exists (select from jsonb_object_keys(env) e (k) where e.k ^@ 'SUNDOWN_'), 'invalid_env', 'variables that begin with "SUNDOWN_" are Sundown''s own', 'Choose another prefix.'),
            (exists (select from jsonb_each(env) e where jsonb_typeof(e.value) <> 'string'), 'invalid_env', 'the value of an environment variable is not a string', 'Give env as {"NAME": "value"}.'),
            (exists (select from jsonb_each_text(env) e where octet_length(e.value) > 32768), 'invalid_env', 'the value of an environment variable is longer than 32 KiB', 'Put long values into a file of the image.'),
            ((select sum(octet_length(e.key) + octet_length(e.value)) from jsonb_each_text(env) e) > 65536, 'invalid_env', 'the environment is larger than 64 KiB', 'Put long values into a file of the image.')
        ) as rules (broken, c, p, r) where broken limit 1;
    end if;
    if code is not null then
        raise exception using errcode = 'SD400', constraint = code, message = problem, hint = remedy;
    end if;

    insert into sundown.agent (id, tenant, name, image, command, env_keys, labels, cpus, memory, pids, network, ttl, max_ttl, grace,
                               start_timeout, queue_timeout, run_at, created_at)
    values (new_id, tenant, name, image, command, array(select jsonb_object_keys(env) order by 1), labels, cpus, memory, pids, network,
            ttl, max_ttl, grace, start_timeout, queue_timeout, run_at, instant);
    if env <> '{}' then
        insert into sundown.agent_secret (id, env) values (new_id, env);
    end if;
    insert into sundown.agent_live (id, due_at, ttl, max_ttl, grace, start_timeout, queue_until)
    values (new_id, greatest(instant, run_at), ttl, max_ttl, grace, start_timeout, greatest(instant, run_at) + queue_timeout);
    perform sundown.wake(notify, 'waits');
    return new_id;
end $$;
comment on function sundown.submit is 'Submits an agent in the caller''s transaction and returns its id. ttl counts from running; notify is auto, always or never; at mocks the clock in tests.';
