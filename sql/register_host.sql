-- A Docker host, known by its UUID, and how many agents it may carry; whoever came last with a number decides.
-- $1 uuid, $2 name, $3 endpoint, $4 capacity, or null: as it was, 100 for a new one; $5 now. Locks its two rows. Always one row.
with h as (
    insert into sundown.host (uuid, name, endpoint, seen_at) values ($1, $2, $3, coalesce($5, statement_timestamp()))
    on conflict (uuid) do update set name = excluded.name, endpoint = excluded.endpoint, seen_at = excluded.seen_at
    returning id
)
insert into sundown.host_slot as s (host, capacity) select h.id, coalesce($4, 100) from h
on conflict (host) do update set capacity = coalesce($4, s.capacity)
returning host
