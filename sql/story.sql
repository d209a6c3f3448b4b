-- Everything that happened to one agent, as JSON, in order. $1 id. No locks. Always a row; its event is null when nobody has the id, or it is
-- longer ago than is kept.
select e.event
  from (select 1) one
  left join lateral (select sundown.event_record(e)::text as event, e.seq from sundown.events e where e.id = $1) e on true
 order by e.seq
