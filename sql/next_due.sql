-- When each host is needed next, in seconds from now; negative when overdue. Host 0 is the line of those who wait.
-- $1 hosts, $2 low watermark or null (not for host 0), $3 now. No locks. No row for a host: nothing is due there ever.
select h.host, extract(epoch from d.due_at - coalesce($3, statement_timestamp()))::float8 as due_in
  from unnest($1::int4[]) h (host)
 cross join lateral (
       select l.due_at from sundown.agent_live l
        where l.host = h.host and l.due_at >= case when h.host = 0 then '-infinity' else coalesce($2::timestamptz, '-infinity') end
        order by l.due_at, l.id limit 1) d
