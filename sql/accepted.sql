-- An agent as it was when it was accepted, so that a repeated request is answered with the same body whatever happened since.
-- $1 id, $2 the transaction that asked. No locks. No row: unknown.
-- By the names of columns, not by their places: a later release may have added some to the view. As a row of its own: put into
-- the argument, it would be made once for each column.
select sundown.record(r)::text as agent, a.xmin::text::bigint = $2::bigint % 4294967296 as is_new
  from sundown.agent a
 cross join lateral jsonb_populate_record(null::sundown.agents, to_jsonb(a) || '{"state": "pending", "attempts": 0}') r
 where a.id = $1
