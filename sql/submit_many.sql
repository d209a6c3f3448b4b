-- Submits agents that came at the same time, none of them under a key. $1 wishes as sundown.submit_many takes them, $2 the longest wait for a
-- lock. Returns for each, by its place in the list, its record, or the code, problem and remedy of its refusal. Our own notifier tells
-- the other replicas.
with patience as materialized (select set_config('lock_timeout', $2, true))
select s.nth, s.id, s.code, s.problem, s.remedy, s.agent
  from patience
 cross join lateral sundown.submit_many($1::jsonb, notify => 'never', records => true) s
