-- One agent as JSON, alive or ended. $1 id. No locks. Always one row; its agent is null when nobody has the id: no answer at all is none.
select a.agent, a.ended
  from (select 1) one
  left join lateral (
       select sundown.record(a)::text as agent, a.finished_at is not null as ended from sundown.agents a where a.id = $1) a on true
