-- Where whoever reads events from now on begins: everything before it is of transactions that have ended; and the oldest event that is kept, if
-- there is any. No parameters, no lock.
select pg_snapshot_xmin(pg_current_snapshot())::text as xid, o.xid::text as oldest_xid, o.seq as oldest_seq
  from (select 1) one
  left join lateral (select e.xid, e.seq from sundown.event e order by e.xid, e.seq limit 1) o on true
