-- A new id for this start of the process; never used again.
-- $1 name, $2 release, $3 now. Always one row.
insert into sundown.replica (name, release, started_at, seen_at)
values ($1, $2, coalesce($3, statement_timestamp()), coalesce($3, statement_timestamp()))
returning id
