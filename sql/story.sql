-- Everything that happened to one agent, as JSON, in order. $1 id. No locks. No row: unknown, or longer ago than is kept.
select sundown.event_record(e)::text as event from sundown.events e where e.id = $1 order by e.seq
