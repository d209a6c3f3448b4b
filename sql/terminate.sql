-- Asks for the end of an agent. $1 id, $2 actor. Locks its row. Returns the state after and, with it, the record.
-- Waits for its row no longer than half a second, so that a row that somebody holds does not take every connection of the API: the
-- limit is looked at when a wait begins, and only what the function does waits. It goes with the statement, through any pooler.
-- Raises SD404, 55P03. Our own notifier tells the other replicas.
with patience as materialized (select set_config('lock_timeout', '500ms', true))
select sundown.terminate(id => $1, actor => $2, notify => 'never') as state from patience
