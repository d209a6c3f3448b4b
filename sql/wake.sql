-- One notification for many writes, from a transaction that writes nothing else and need not wait for the disk.
-- $1 the reasons: waits, due. Holds the database-wide notification lock for a moment.
select set_config('synchronous_commit', 'off', true), pg_notify('sundown_wake', reason) from unnest($1::text[]) reason
