-- A page of agents as JSON, newest first, older than the cursor.
-- $1 state or null, $2 cursor (the last id of the page before) or null, $3 how many (up to 1001). No locks. No row: that was the last page.
select a.id, sundown.record(a)::text as agent
  from sundown.agents a
 where ($1::text is null or a.state = $1) and ($2::uuid is null or a.id < $2)
 order by a.id desc limit $3
