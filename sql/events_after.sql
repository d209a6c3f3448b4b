-- The next events after a place, none of which is ever preceded by one that is not there yet: only of transactions before the oldest that is
-- still open. $1 xid, $2 seq, $3 at most how many. No lock.
select e.xid::text as xid, e.seq, e.id, sundown.event_record(e)::text as event
  from sundown.events e
 where (e.xid, e.seq) > ($1::text::xid8, $2::int8) and e.xid < pg_snapshot_xmin(pg_current_snapshot())
 order by e.xid, e.seq limit $3
