-- Asks for the end of agents with these labels. $1 labels, $2 the actor, $3 whether only to count them, $4 at most how many, or null, $5 the
-- longest wait for a lock. Locks their rows, in order of id. Our own notifier tells the other replicas.
with patience as materialized (select set_config('lock_timeout', $5, true))
select sundown.terminate_labelled($1, $2, $3, $4, notify => 'never') as count from patience
