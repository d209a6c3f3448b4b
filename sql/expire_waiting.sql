-- Ends those that waited for a place longer than they wanted to.
-- $1 now. Locks at most 100 rows, skipping what others hold. Returns how many.
with due as materialized (
    select l.id from sundown.agent_live l
     where l.host = 0 and l.queue_until <= coalesce($1, statement_timestamp())
     order by l.queue_until limit 100
       for update skip locked
), ended as materialized (
    select sundown.end_unplaced(array(select d.id from due d order by d.id), 'queue_timeout', 'sundown', coalesce($1, statement_timestamp()))
     where exists (select from due)
)
select (select count(*) from due) as ended, (select count(*) from ended) as calls
