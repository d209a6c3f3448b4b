-- Of the agents whose containers were seen, which are known, which of those have a live row, and for how many seconds the others have been
-- over. Asked after the list.
-- $1 ids, $2 the installation that we take ourselves for. No locks. No row at all: a foreign, unbound or read-only database; conclude nothing.
select i.id, a.id is not null as known, l.id is not null as live, extract(epoch from statement_timestamp() - o.finished_at)::float8 as over_for
  from unnest($1::uuid[]) i (id)
  left join sundown.agent a on a.id = i.id
  left join sundown.agent_live l on l.id = i.id
  left join sundown.agent_outcome o on o.id = i.id
 where sundown.bound() and exists (select from sundown.installation n where n.id = $2)
