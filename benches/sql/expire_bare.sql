-- The least that an expiry can be: a claim that decides and leases, and a finish that moves what lived into what has ended. Batches of 100.
with due as materialized (
    select l.id from bare.live l
     where l.host = 1 and l.due_at <= statement_timestamp()
     order by l.due_at, l.id limit 100
       for update skip locked
), claimed as (
    update bare.live l
       set epoch = l.epoch + 1, state = 'terminating', decided_at = statement_timestamp(), due_at = statement_timestamp() + interval '2 s'
     where l.id = any (array(select d.id from due d))
    returning l.id
)
select coalesce(array_agg(id order by id), '{}')::text as ids from claimed \gset

with gone as (
    delete from bare.live l where l.id = any (:ids::uuid[]) returning l.id, l.host, l.expires_at, l.decided_at
)
insert into bare.outcome (id, state, host, exit_code, expires_at, decided_at, finished_at)
select g.id, 'expired', g.host, 137, g.expires_at, g.decided_at, statement_timestamp() from gone g;
