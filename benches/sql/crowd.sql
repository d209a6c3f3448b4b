-- A hundred agents that run on a host of nobody's and are due at once: what the statements of a claim find at full load.
begin;
with a as (
    insert into sundown.agent (id, tenant, image, command, env_keys, labels, cpus, memory, pids, network, ttl, max_ttl, grace, start_timeout, created_at)
    select sundown.uuidv7(clock_timestamp()), 'default', 'busybox', '{sleep,inf}', '{}', '{}', 1, 268435456, 128, 'none', '1 hour', '1 day', '0', '60 s', now()
      from generate_series(1, 100)
    returning id
), l as (
    insert into sundown.agent_live (id, due_at, ttl, max_ttl, grace, start_timeout)
    select a.id, now(), '1 hour', '1 day', '0', '60 s' from a
    returning id
)
select coalesce(array_agg(id), '{}')::text as ids from l \gset
update sundown.agent_live l
   set host = :host, epoch = 1, placed_at = now(), state = 'running', started_at = now(), container_id = 'container of ' || l.id,
       due_at = now(), expires_at = now()
 where l.id = any (:ids::uuid[]);
commit;
