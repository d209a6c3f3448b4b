-- A page of agents that carry labels, as JSON, newest first, older than the cursor: so many, or about 1 MiB of them, and at least one.
-- Those that live are looked through by state, those that have ended by whichever is rarer, the state or the labels.
-- $1 state or null, $2 cursor or null, $3 how many (up to 1000), $4 the labels. No locks. No row: that was the last page.
select p.id, sundown.record(a)::text as agent, p.more
  from (select i.id, lead(i.id) over w is not null as more, sum(i.size) over (w rows unbounded preceding) - i.size as before
          from (select c.id, 1000 + octet_length(array_to_string(c.command || c.env_keys, ' ')) + octet_length(c.labels::text) as size
                  from ((select a.id, a.command, a.env_keys, a.labels from sundown.agent_live l join sundown.agent a on a.id = l.id
                          where l.state = $1 and a.labels @> $4 and ($2::uuid is null or l.id < $2)
                          order by l.id desc limit $3 + 1)
                        union all
                        (select a.id, a.command, a.env_keys, a.labels from sundown.agent_outcome o join sundown.agent a on a.id = o.id
                          where o.state = $1 and a.labels @> $4 and ($2::uuid is null or o.id < $2)
                          order by o.id desc limit $3 + 1)
                        union all
                        (select a.id, a.command, a.env_keys, a.labels from sundown.agent a
                          where $1::text is null and a.labels @> $4 and ($2::uuid is null or a.id < $2)
                          order by a.id desc limit $3 + 1)) c
                 order by c.id desc limit $3 + 1) i
        window w as (order by i.id desc)) p
  join sundown.agents a on a.id = p.id
 where p.before < 1048576
 order by p.id desc limit $3
