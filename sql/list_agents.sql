-- A page of agents as JSON, newest first, older than the cursor: so many, or about 1 MiB of them, and at least one.
-- $1 state or null, $2 cursor (the last id of the page before) or null, $3 how many (up to 1000). No locks. No row: that was the last page.
select p.id, sundown.record(a)::text as agent, p.more
  from (select i.id, lead(i.id) over w is not null as more,
               sum(i.size) over (w rows unbounded preceding) - i.size as before
          from (select a.id, 1000 + octet_length(array_to_string(a.command || a.env_keys, ' ')) + octet_length(a.labels::text) as size
                  from sundown.agents a
                 where ($1::text is null or a.state = $1) and ($2::uuid is null or a.id < $2)
                 order by a.id desc limit $3 + 1) i
        window w as (order by i.id desc)) p
  join sundown.agents a on a.id = p.id
 where p.before < 1048576
 order by p.id desc limit $3
