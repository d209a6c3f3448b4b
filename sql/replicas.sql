-- The replicas of the last hour, as JSON. No parameters, no locks. No row: no replica has ever been here.
select row_to_json(r)::text as replica from sundown.replicas r order by r.id
