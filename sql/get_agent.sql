-- One agent as JSON, alive or ended. $1 id. No locks. No row: unknown.
select sundown.record(a)::text as agent, a.finished_at is not null as ended from sundown.agents a where a.id = $1
