-- An agent as programs see it: the columns of sundown.agents, durations as seconds, instants in UTC.
create or replace function sundown.instant(at timestamptz) returns text
language sql stable parallel safe as $$ select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;
comment on function sundown.instant(timestamptz) is 'An instant as RFC 3339 in UTC.';

create or replace function sundown.record(a sundown.agents) returns json
language sql stable as $$
    select json_build_object(
        'id', a.id, 'name', a.name, 'tenant', a.tenant, 'state', a.state, 'reason', a.reason, 'image', a.image, 'command', a.command,
        'labels', a.labels, 'ttl', extract(epoch from a.ttl)::float8, 'max_ttl', extract(epoch from a.max_ttl)::float8,
        'grace', extract(epoch from a.grace)::float8, 'run_at', sundown.instant(a.run_at), 'created_at', sundown.instant(a.created_at),
        'started_at', sundown.instant(a.started_at), 'expires_at', sundown.instant(a.expires_at), 'finished_at', sundown.instant(a.finished_at),
        'exit_code', a.exit_code, 'error', a.error, 'host', a.host, 'container_id', a.container_id, 'attempts', a.attempts,
        'env_keys', a.env_keys)
$$;
comment on function sundown.record(sundown.agents) is 'A row of sundown.agents as the JSON that the API answers.';

create or replace function sundown.event_record(e sundown.events) returns json
language sql stable as $$
    select json_build_object(
        'at', sundown.instant(e.at), 'agent', e.id, 'kind', e.kind, 'was', e.was, 'state', e.state, 'reason', e.reason, 'actor', e.actor,
        'host', e.host, 'epoch', e.epoch, 'container_id', e.container_id, 'expires_at', sundown.instant(e.expires_at), 'exit_code', e.exit_code)
$$;
comment on function sundown.event_record(sundown.events) is 'A row of sundown.events as the JSON that the API answers.';
