-- A page of agents that carry labels, as JSON, newest first, older than the cursor: those that carry them first, by the index of labels,
-- then how each is doing, by its key.
-- $1 state or null, $2 cursor or null, $3 how many (up to 1001), $4 the labels. No locks. No row: that was the last page.
select c.id, sundown.record(a)::text as agent
  from (select a.id from sundown.agent a where a.labels @> $4 and ($2::uuid is null or a.id < $2) order by a.id desc) c
  join sundown.agents a on a.id = c.id
 where $1::text is null or a.state = $1
 order by c.id desc limit $3
