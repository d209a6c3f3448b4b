-- An agent as it was when it was accepted, so that a repeated request is answered with the same body whatever happened since.
-- $1 id, $2 the transaction that asked. No locks. No row: unknown.
select sundown.record(row(a.id, a.name, a.tenant, 'pending', null, a.image, a.command, a.labels, a.ttl, a.max_ttl, a.grace, a.run_at, a.created_at,
                          null, null, null, null, null, null, null, 0, a.env_keys)::sundown.agents)::text as agent,
       a.xmin::text::bigint = $2::bigint % 4294967296 as is_new
  from sundown.agent a where a.id = $1
