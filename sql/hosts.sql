-- The hosts, as JSON. No parameters, no locks. No row: no replica has reached a host yet.
select row_to_json(h)::text as host from sundown.hosts h order by h.id
