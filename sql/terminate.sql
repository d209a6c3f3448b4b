-- Asks for the end of agents. $1 ids, $2 the actor of each, $3 the longest wait for a lock. Locks their rows, in order of id. Returns the
-- record of each and whether it has ended; no row: unknown. Our own notifier tells the other replicas.
-- The limit is looked at when a wait begins, and only what the function does waits. It goes with the statement, through any pooler.
with patience as materialized (select set_config('lock_timeout', $3, true))
select t.id, t.agent, t.state not in ('pending', 'running', 'terminating') as ended
  from patience
 cross join lateral sundown.terminate_many($1, $2, notify => 'never', records => true) t
