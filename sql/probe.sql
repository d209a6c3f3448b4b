-- Says something on a channel, so that whoever listens there knows that it still hears. Need not wait for the disk.
-- $1 channel. Holds the database-wide notification lock for a moment.
select set_config('synchronous_commit', 'off', true), pg_notify($1, '')
