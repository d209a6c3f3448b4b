-- A hint to every replica: somebody waits for a place, or something is due sooner than it knows. Polling alone is correct; this only
-- makes it quick. One payload for each reason, so that many in one transaction are one. `auto` leaves it out when another transaction
-- is about to send it: a notifying commit holds a lock on the whole database until it is on disk.
create or replace function sundown.wake(notify text, reason text default 'due') returns void
language plpgsql as $$
begin
    if notify = 'never' then
        return;
    elsif notify = 'always' or (notify = 'auto' and pg_try_advisory_xact_lock(hashtextextended('sundown wake ' || reason, 0))) then
        perform pg_notify('sundown_wake', reason);
    elsif notify is distinct from 'auto' then
        raise exception using errcode = 'SD400', constraint = 'invalid_notify', message = format('notify is %L', notify),
            hint = 'Use auto, always or never.';
    end if;
end $$;
comment on function sundown.wake(text, text) is 'Tells every replica to look again: auto, always or never.';
