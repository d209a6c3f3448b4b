-- A batch of deadlines, from the claim to the outcomes: the product's own claim and finish, and between them for the whole batch what
-- signalling.sql and observe.sql do for one agent. Each statement commits on its own, as in the product.
with claimed as (
/* claim_due */
)
select coalesce(array_agg(id order by id), '{}')::text as ids from claimed \gset

update sundown.agent_live l
   set signalled_at = statement_timestamp(), killed_at = statement_timestamp(), attempts = 0, due_at = statement_timestamp() + interval '2 s'
 where l.id = any (:ids::uuid[]) and l.state = 'terminating' and l.observed_at is null;

with seen as (
    update sundown.agent_live l
       set ended_state = 'expired', ended_reason = l.reason, exit_code = 137, oom_killed = false, observed_at = statement_timestamp(),
           epoch = l.epoch + 1, attempts = 1, due_at = statement_timestamp() + interval '2 s'
     where l.id = any (:ids::uuid[]) and l.observed_at is null
    returning l.id, l.epoch, l.observed_at
), log as (
    insert into sundown.agent_log (id, tail, truncated, taken_at)
    select s.id, '', false, s.observed_at from seen s
    on conflict (id) do nothing
)
select coalesce(array_agg(epoch order by id), '{}')::text as epochs from seen \gset

/* finish */;
