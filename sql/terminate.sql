-- Asks for the end of an agent. $1 id, $2 actor. Locks its row. Returns the state after and, with it, the record.
-- Raises SD404. Our own notifier tells the other replicas.
select sundown.terminate(id => $1, actor => $2, notify => 'never') as state
