-- Asks for the end of agents. $1 ids, $2 the actor of each, $3 the longest wait for a lock. Locks their rows, in order of id. Returns for each id
-- its record and whether it has ended; nulls: unknown. An id that does not come back was not asked for: some poolers hand over the
-- answer to another question. Our own notifier tells the other replicas.
-- The limit is looked at when a wait begins, and only what the function does waits. It goes with the statement, through any pooler.
with patience as materialized (
    select set_config('lock_timeout', $3, true)
), after as materialized (
    select t.id, t.agent, t.state
      from patience
     cross join lateral sundown.terminate_many($1, $2, notify => 'never', records => true) t
)
select asked.id, t.agent, t.state not in ('pending', 'running', 'terminating') as ended
  from unnest($1::uuid[]) asked (id)
  left join after t on t.id = asked.id
