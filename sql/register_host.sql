-- A Docker host, known by its UUID, and how many agents it may carry; whoever registered last decides.
-- $1 uuid, $2 name, $3 endpoint, $4 capacity, $5 now. Locks its two rows. Always one row.
with h as (
    insert into sundown.host (uuid, name, endpoint, seen_at) values ($1, $2, $3, coalesce($5, statement_timestamp()))
    on conflict (uuid) do update set name = excluded.name, endpoint = excluded.endpoint, seen_at = excluded.seen_at
    returning id
)
insert into sundown.host_slot (host, capacity) select h.id, $4 from h
on conflict (host) do update set capacity = excluded.capacity
returning host
